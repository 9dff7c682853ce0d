"""Log-probabilities of labels and entropies of an output layer, without tokens x vocabulary logits ever being held.

Two implementations of one function. The plain one takes `PLAIN_CHUNK` tokens at a time and lets autograd derive each chunk again in the
backward pass; it is the reference. The fused one has its gradient written out and goes through the vocabulary in blocks as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightrft.models.fused_logprob import FusedLogprob
from lightrft.models.logprob_spec import LogprobColumns, LogprobSpec
from lightrft.models.plain_logprob import PlainLogprob

Tensor = torch.Tensor
Terms = Sequence[tuple[Tensor, Tensor]]
"""Pairs of hidden states [S, H_i] and weights [V, H_i], whose products `hidden @ weight.T` are summed. An adapter is a second pair."""


def linear_logprob(terms: Terms, labels: Tensor, *, spec: LogprobSpec, bias: Tensor | None = None) -> LogprobColumns:
    """The columns of `labels` int64 [S] under softmax(transform(sum of hidden @ weight.T + bias) / temperature).

    Differentiable once in hidden states, weights and bias; a column that the loss does not use costs nothing in the backward pass. Weight
    gradients are accumulated over chunks in float32. A logit of minus infinity has probability 0 and adds nothing to the entropy.
    """
    implementation: Any = PlainLogprob if spec.chunk_size is None else FusedLogprob
    device = labels.device.type
    if not torch.amp.is_autocast_available(device):  # the meta device, where `lightrft plan` counts bytes
        found = implementation.apply(spec, labels, bias, *(tensor for pair in terms for tensor in pair))
        return LogprobColumns.of(found, count=len(spec.temperatures))
    tensors = _under_autocast([bias, *(tensor for pair in terms for tensor in pair)], device=device)
    with torch.autocast(device, enabled=False):  # it ends before the backward pass, which computes the same again
        found = implementation.apply(spec, labels, *tensors)
    return LogprobColumns.of(found, count=len(spec.temperatures))


def _under_autocast(tensors: Sequence[Tensor | None], *, device: str) -> list[Tensor | None]:
    """In the type that autocast would give to a linear layer's inputs; as they are without it."""
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [None if tensor is None else tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
