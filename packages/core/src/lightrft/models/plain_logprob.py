"""The log-probs and entropies of an output layer by chunks of tokens, each derived by autograd when its gradient is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightrft.models.logprob_spec import LogprobSpec, chunks_of, sum_dtype

Tensor = torch.Tensor

PLAIN_CHUNK = 256
"""Tokens at a time: 0.15 GiB of float32 logits at a vocabulary of 151,936."""


class PlainLogprob(torch.autograd.Function):
    """Chunk by chunk; the backward pass computes each chunk again, with autograd."""

    @staticmethod
    def forward(ctx: Any, spec: LogprobSpec, labels: Tensor, bias: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        ctx.save_for_backward(labels, bias, *tensors)
        chunks = [_columns(spec, labels[rows], *_rows_of([bias, *tensors], rows)) for rows in chunks_of(labels, PLAIN_CHUNK)]
        return tuple(torch.cat(column) for column in zip(*chunks, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        labels, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        sums = [torch.zeros_like(t, dtype=sum_dtype(t)) if need else None for t, need in zip(inputs, wanted, strict=True)]
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        for rows in chunks_of(labels, PLAIN_CHUNK) if used else ():
            leaves = [_leaf(t, need) for t, need in zip(_rows_of(inputs, rows), wanted, strict=True)]
            with torch.enable_grad():
                columns = _columns(ctx.spec, labels[rows], *leaves)
            outputs, upstream = zip(*((columns[i], g[rows]) for i, g in enumerate(gradients) if g is not None), strict=True)
            found = iter(torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None and leaf.requires_grad], upstream))
            for position, total in enumerate(sums):
                if total is not None:
                    of_tokens = position % 2 == 1  # the bias, then pairs of hidden states and weight
                    (total[rows] if of_tokens else total).add_(next(found))
        return None, None, *(None if s is None else s.to(t.dtype) for s, t in zip(sums, inputs, strict=True))


def _columns(spec: LogprobSpec, labels: Tensor, bias: Tensor | None, *tensors: Any) -> list[Tensor]:
    """Log-probs [S] for each temperature, then perhaps the entropy [S]: the definition, on logits [S, V]."""
    raw = torch.nn.functional.linear(tensors[0], tensors[1], bias)
    for hidden, weight in zip(tensors[2::2], tensors[3::2], strict=True):
        raw = raw + hidden @ weight.T
    logits = spec.transform(raw.to(sum_dtype(raw)))
    found = []
    for temperature in spec.temperatures:
        z = logits / temperature
        found.append(z.gather(-1, labels[:, None]).squeeze(-1) - z.logsumexp(-1))
    if spec.entropy:
        normalized = (logits / spec.temperatures[0]).log_softmax(-1)
        found.append(-(normalized.exp() * normalized.masked_fill(normalized == -torch.inf, 0.0)).sum(-1))
    return found


def _rows_of(inputs: Sequence[Tensor | None], rows: slice) -> list[Tensor | None]:
    """The rows of hidden states; bias and weights as they are."""
    return [None if t is None else t[rows] if index % 2 else t for index, t in enumerate(inputs)]


def _leaf(tensor: Tensor | None, needs_grad: bool) -> Tensor | None:
    return None if tensor is None else tensor.detach().requires_grad_(needs_grad)
