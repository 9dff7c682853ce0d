"""Our attention function in transformers' models: packed rows, windows, soft caps, sinks and sequence groups.

Registered with transformers' attention and mask interfaces, so no model is patched. A packed row's borders travel as
arguments of the model call (`packed_inputs`), which reach every layer, also one that is computed again in the backward
pass. No mask says what belongs together, so none can silently unpack a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lightrft.distributed.mesh import Axis
from lightrft.distributed.sequence import my_heads, shard, to_heads, to_tokens
from lightrft.errors import ModelError
from lightrft.models.attention_kernels import Asked, attend_rows, attend_segments

NAME = "lightrft"
"""Of the implementation, in `config._attn_implementation`. None of transformers' checks looks for a part of it."""

WITHOUT_MEANING = frozenset(
    {
        "position_ids",
        "use_cache",
        "logits_to_keep",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "cu_seq_lens_k",
        "max_length_k",
    }
)
"""Arguments that layers pass on and that change nothing here."""


def has_our_attention(model: Any) -> bool:
    """Whether `use_our_attention` was called on it."""
    return bool(model.config.get_text_config()._attn_implementation == NAME)


def use_our_attention(model: Any, *, setting: str) -> None:
    """Makes the model's text layers call our function, for packed and for padded rows. Not collective.

    Raises:
        ModelError: its attention cannot be exchanged; names `setting`, which asks for it.
    """
    config = model.config.get_text_config()
    whole = config is model.config
    if not all(part._can_set_attn_implementation() for part in _text_models(model, config)):
        raise ModelError(
            f"{setting}: {type(model).__name__} computes attention by itself, not through transformers' attention interface, so its "
            f"rows cannot be packed or shared; leave {setting.split('=')[0]} out"
        )
    parts = {name: NAME for name in model.config.sub_configs if getattr(model.config, name) is config}
    model.set_attn_implementation(NAME if whole else parts)
    if not whole:
        for part in _text_models(model, config):
            part.register_forward_pre_hook(_own_part, with_kwargs=True)


def _own_part(_: torch.nn.Module, args: tuple[Any, ...], told: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of a row that came whole (`embedding_axis`), so that images could be put in their places, this rank's part of the embeddings."""
    axis: Axis | None = told.pop("embedding_axis", None)
    if axis is None:
        return args, told
    embeddings = shard(told["inputs_embeds"].transpose(1, 2), axis).transpose(1, 2)
    return args, told | {"inputs_embeds": embeddings, "position_ids": shard(told["position_ids"], axis), "sequence_axis": axis}


def _text_models(model: Any, config: Any) -> Iterator[Any]:
    return (
        module for module in model.modules() if getattr(module, "config", None) is config and hasattr(module, "set_attn_implementation")
    )


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The borders of a packed row's sequences, and the ranks among which the row is shared.

    `offsets` int32 [K + 1] on the model's device, those of the whole row (`padded_offsets`) also where ranks share it;
    `longest` is the longest segment's length, that of the padding included: a kernel leaves out what is beyond it.
    """

    offsets: torch.Tensor
    longest: int
    axis: Axis | None = None

    def inputs(self) -> dict[str, Any]:
        """The arguments of the model call that carry them to every layer."""
        return {
            "cu_seq_lens_q": self.offsets,
            "max_length_q": self.longest,
            "sequence_axis": self.axis,
            "use_cache": False,
        }


@dataclass(frozen=True, kw_only=True)
class MaskAsked:
    """A mask that the model asked for: sees(row, head, query, key), and the window that it has (None: none)."""

    sees: Callable[..., Any]
    window: int | None
    is_custom: bool


@dataclass
class Watch:
    """What a packed forward pass asked for: masks, and the windows of the layers."""

    masks: list[MaskAsked] = field(default_factory=list)
    windows: set[int | None] = field(default_factory=set)


_packed: ContextVar[Watch | None] = ContextVar("packed", default=None)


@contextmanager
def packed_forward() -> Iterator[Watch]:
    """Inside, every layer has to be told the segments: a model that loses them is an error, and not one long row."""
    watch = Watch()
    token = _packed.set(watch)
    try:
        yield watch
    finally:
        _packed.reset(token)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sequence_axis: Axis | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' signature: [N, heads, L, D] in, [N, L, heads, D] and no weights out."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = Asked(scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux, dropout=dropout)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _check_call(module, others, cu_seq_lens_q, asked)
    if cu_seq_lens_q is None:
        out = attend_rows(query, key, value, attention_mask, asked, causal=causal)
    else:
        assert max_length_q is not None
        _check_packed(module, query, key, attention_mask, causal)
        out = _packed_row(
            query,
            key,
            value,
            Segments(offsets=cu_seq_lens_q, longest=max_length_q, axis=sequence_axis),
            asked,
        )
    return out.transpose(1, 2).contiguous(), None


def _packed_row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Segments, asked: Asked) -> torch.Tensor:
    """Collective over the row's axis."""
    if row.axis is None or row.axis.size == 1:
        return attend_segments(query, key, value, row.offsets, row.longest, asked)
    query, key, value = to_heads(query, key, value, row.axis)
    if asked.sinks is not None:
        asked = replace(asked, sinks=my_heads(asked.sinks, row.axis))
    return to_tokens(attend_segments(query, key, value, row.offsets, row.longest, asked), row.axis)


def _check_call(module: torch.nn.Module, others: dict[str, Any], offsets: torch.Tensor | None, asked: Asked) -> None:
    unknown = sorted(name for name, value in others.items() if value is not None and name not in WITHOUT_MEANING)
    if unknown:
        raise ModelError(f"{type(module).__name__} gives its attention {', '.join(unknown)}, which this attention does not know")
    watch = None if torch.compiler.is_compiling() else _packed.get()
    if watch is not None:
        watch.windows.add(asked.window)
        if offsets is None:
            raise ModelError(f"{type(module).__name__} is not told where sequences end: its model drops arguments of the call")


def _check_packed(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> None:
    problem = ""
    if mask is not None:
        problem = "has a mask of its own"
    elif query.shape[0] != 1:
        problem = f"was given {query.shape[0]} rows"
    elif key.shape[2] != query.shape[2]:
        problem = "remembers tokens of an earlier call (use_cache)"
    elif not causal:
        problem = "looks ahead"
    if problem:
        raise ModelError(f"{type(module).__name__} {problem}, which a packed row cannot have")


def _mask(
    *,
    mask_function: Callable[..., Any],
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **settings: Any,
) -> torch.Tensor | None:
    """No mask for packed rows, whose segments are known to the layers; what sdpa gets for padded rows."""
    watch = _packed.get()
    if watch is None:
        found: torch.Tensor | None = sdpa_mask(
            mask_function=mask_function, attention_mask=attention_mask, local_size=local_size, use_vmap=use_vmap, **settings
        )
        return found
    if attention_mask is not None:
        raise ModelError("a packed row has no attention mask, and this model makes one or was given one")
    watch.masks.append(MaskAsked(sees=mask_function, window=local_size, is_custom=use_vmap))
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
