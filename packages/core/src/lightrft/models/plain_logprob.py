"""The log-probs and entropies of an output layer by chunks of tokens, each derived by autograd when its gradient is asked for."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.models.logprob_spec import LogprobSpec, sum_dtype
from lightrft.models.output_layer import OutputLayer

Tensor = torch.Tensor

PLAIN_CHUNK = 512
"""Tokens at a time: 0.3 GiB of float32 logits at a vocabulary of 151,936."""


class PlainLogprob(torch.autograd.Function):
    """Chunk by chunk; the backward pass computes each chunk again, with autograd down to the layer's result."""

    @staticmethod
    def forward(ctx: Any, spec: LogprobSpec, labels: Tensor, bias: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        ctx.save_for_backward(labels, bias, *tensors)
        layer = _layer(bias, *tensors)
        [block] = layer.blocks
        chunks = [_columns(spec, labels[rows], layer.result(rows, block)) for rows in layer.chunks]
        return tuple(torch.cat(column) for column in zip(*chunks, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        labels, bias, *tensors = ctx.saved_tensors
        layer = _layer(bias, *tensors)

        def of_result(rows: slice, block: slice) -> Tensor:
            result = layer.result(rows, block).requires_grad_()
            with torch.enable_grad():
                columns = _columns(ctx.spec, labels[rows], result)
            used = [(column, upstream[rows]) for column, upstream in zip(columns, gradients, strict=True) if upstream is not None]
            [found] = torch.autograd.grad([column for column, _ in used], [result], [upstream for _, upstream in used])
            return found

        return None, None, *layer.gradients(of_result, ctx.needs_input_grad[2:])


def _layer(bias: Tensor | None, *tensors: Tensor) -> OutputLayer:
    return OutputLayer(tensors[0::2], tensors[1::2], bias, chunk_size=PLAIN_CHUNK, vocab_block=len(tensors[1]))


def _columns(spec: LogprobSpec, labels: Tensor, result: Tensor) -> list[Tensor]:
    """Log-probs [S] for each temperature, then perhaps the entropy [S]: the definition, on the layer's result [S, V]."""
    logits = spec.transform(result.to(sum_dtype(result)))
    found = []
    for temperature in spec.temperatures:
        z = logits / temperature
        found.append(z.gather(-1, labels[:, None]).squeeze(-1) - z.logsumexp(-1))
    if spec.entropy:
        normalized = (logits / spec.temperatures[0]).log_softmax(-1)
        found.append(-(normalized.exp() * normalized.masked_fill(normalized == -torch.inf, 0.0)).sum(-1))
    return found
