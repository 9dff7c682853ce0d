"""What passes of a model hold, found by running them on the meta device: the operations of a real pass, and no values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from lightrft.diagnostics.live_bytes import LiveBytes, peak_of
from lightrft.errors import ModelError
from lightrft.models.heads import LabelRequest, make_logprob_head, score_labels
from lightrft.strategy.compiled import has_experts
from lightrft.strategy.recompute import recompute_activations
from lightrft.strategy.sharding import find_blocks

Tensor = torch.Tensor
NAME = "lightrft_dry"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """One micro-batch: `rows` of `length` tokens, of which the last `labels` of each are scored."""

    rows: int
    length: int
    labels: int


@dataclass(frozen=True, kw_only=True)
class DryModel:
    """The sizes of a model, in parameters, and what makes it on the meta device in a dtype."""

    make: Callable[[], Any]
    total: int
    block: int
    """Of the largest block; `rest` is what no block holds: embedding and head."""
    rest: int
    trained: int
    largest: int
    """Of the largest trained tensor."""

    @classmethod
    def of(cls, make: Callable[[], Any]) -> DryModel:
        """Looks at one that `make` makes. Raises ModelError: it has no blocks, or experts."""
        model = make()
        if has_experts(model):
            raise ModelError(
                f"{type(model).__name__} is a mixture of experts: how many tokens an expert gets is not known beforehand; "
                "plan for a dense model"
            )
        blocks = [sum(p.numel() for p in block.parameters()) for block in find_blocks(model)]
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        largest = max((p.numel() for p in model.parameters() if p.requires_grad), default=0)
        return cls(make=make, total=total, block=max(blocks), rest=max(0, total - sum(blocks)), trained=trained, largest=largest)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Bytes beside weights, optimizer state and gradients that were there before."""

    activations: int
    """Held for the backward pass, when the forward pass ends."""
    backward: int
    """At most in forward and backward, with the gradients that this pass itself leaves at that moment."""


def peaks(dry: DryModel, rows: Rows, *, dtype: torch.dtype, chunk: int | None, recompute: bool, keeps: Callable[[Tensor], int]) -> Peaks:
    """Runs passes on the meta device. `keeps` says how many bytes stay of a parameter's gradient once it is complete (0: another
    place has counted them). `chunk`: as `fused_chunk` of `score_tokens`.
    """
    model = _ready(dry, dtype)
    if recompute:
        recompute_activations(model)
    with LiveBytes() as live:
        kept: list[Tensor] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(_keep, kept=kept, keeps=keeps))
        loss = _score(model, rows, chunk, grad=True)
        held = live.now
        torch.autograd.backward(loss)
    return Peaks(activations=held, backward=live.peak)


def forward_peak(dry: DryModel, rows: Rows, *, dtype: torch.dtype, chunk: int | None) -> int:
    """Bytes that a pass without gradients holds at most beside the weights."""
    return peak_of(partial(_score, _ready(dry, dtype), rows, chunk, grad=False))


def _keep(parameter: Tensor, *, kept: list[Tensor], keeps: Callable[[Tensor], int]) -> None:
    parameter.grad = None
    if size := keeps(parameter):
        kept.append(torch.empty(size, dtype=torch.uint8, device="meta"))


def _ready(dry: DryModel, dtype: torch.dtype) -> Any:
    model = dry.make().to("meta", dtype).eval()  # adapters are made with values
    for part in model.modules():  # the configuration is one object, or one for each part
        if hasattr(getattr(part, "config", None), "_attn_implementation"):
            part.config._attn_implementation = NAME
    make_logprob_head(model).scoring.verified = True  # a meta tensor has no values to verify
    return model


def _score(model: Any, rows: Rows, chunk: int | None, *, grad: bool) -> Tensor:
    with torch.set_grad_enabled(grad):
        ids = torch.empty(rows.rows, rows.length, dtype=torch.int64, device="meta")
        at = torch.empty(rows.rows * rows.labels, dtype=torch.int64, device="meta")
        request = LabelRequest(rows=at, labels=torch.empty_like(at), chunk_size=chunk)
        try:
            return score_labels(model, request, input_ids=ids, attention_mask=torch.ones_like(ids)).logprobs[0].sum()
        except RuntimeError as error:  # of torch: what it does depends on values
            words = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{type(model).__name__}: its passes cannot be counted without values ({words}); plan for a dense model"
            ) from error


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: query, key, value, result, and one number for each head and position."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: object, **_: object) -> tuple[Tensor, None]:
    repeat = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeat, 1) if repeat > 1 else t for t in (key, value))
    attend: Any = _Attention.apply
    return attend(query, key, value).transpose(1, 2).contiguous(), None


def _no_mask(*_: object, **__: object) -> None:
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)
