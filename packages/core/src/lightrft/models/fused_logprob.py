"""The log-probs and entropies of an output layer by blocks of tokens and of the vocabulary, with the gradient written out.

With z the logits over the temperature, p = softmax(z), m = sum(p z) and H = logsumexp(z) - m:
d logprob / d z_j = [j = label] - p_j and d H / d z_j = -p_j (z_j - m). Each block of z is computed a second time in the backward pass.

What is done to a block takes most of the time beside the products of matrices, so each line that touches one is a pass over memory that was
counted: casts ride on the arithmetic, factors are applied to the [rows] they come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.models.logprob_spec import LogitTransform, LogprobSpec, chunks_of, sum_dtype

Tensor = torch.Tensor

VOCAB_BLOCK = {"cpu": 4096, "cuda": 16384}
"""Tokens of the vocabulary at a time: what a processor multiplies at full speed, and a GPU."""


@dataclass(frozen=True)
class Layer:
    """An output layer and what goes into it. See `linear_logprob.Terms`."""

    spec: LogprobSpec
    labels: Tensor
    bias: Tensor | None
    hidden: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the layer's result."""
        return self.weights[0].dtype

    def chunks(self) -> list[slice]:
        """Slices of the tokens."""
        assert self.spec.chunk_size is not None
        return chunks_of(self.labels, self.spec.chunk_size)

    def blocks(self) -> Iterator[slice]:
        """Slices of the vocabulary."""
        size, step = len(self.weights[0]), VOCAB_BLOCK[self.labels.device.type]
        return (slice(first, min(first + step, size)) for first in range(0, size, step))

    def logits(self, rows: slice, block: slice) -> Tensor:
        """[rows, block]: the layer's result as it is, or transformed, then in `sum_dtype`."""
        bias = None if self.bias is None else self.bias[block]
        raw = torch.nn.functional.linear(self.hidden[0][rows], self.weights[0][block], bias)
        for hidden, weight in zip(self.hidden[1:], self.weights[1:], strict=True):
            raw = raw + hidden[rows] @ weight[block].T
        return raw if self.spec.transform == LogitTransform() else self.spec.transform(raw.to(sum_dtype(raw)))

    def places(self, rows: slice, block: slice) -> tuple[Tensor, Tensor]:
        """Where in the block each label stands, [rows, 1], and whether it does, [rows]; without a wait for the device."""
        label = self.labels[rows] - block.start
        inside = (label >= 0) & (label < block.stop - block.start)
        return label.clamp(0, block.stop - block.start - 1)[:, None], inside


class FusedLogprob(torch.autograd.Function):
    """See `linear_logprob`."""

    @staticmethod
    def forward(ctx: Any, spec: LogprobSpec, labels: Tensor, bias: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        layer = Layer(spec, labels, bias, tensors[0::2], tensors[1::2])
        at_label, lse, mean = _statistics(layer)
        ctx.save_for_backward(labels, bias, lse, mean, *tensors)
        temperatures = torch.tensor(spec.temperatures, dtype=lse.dtype).to(lse.device, non_blocking=True)
        logprobs = at_label / temperatures[:, None] - lse
        return (*logprobs, lse[0] - mean) if spec.entropy else tuple(logprobs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        labels, bias, lse, mean, *tensors = ctx.saved_tensors
        layer = Layer(ctx.spec, labels, bias, tuple(tensors[0::2]), tuple(tensors[1::2]))
        upstream = _Upstream(lse, mean, gradients)
        return None, None, *_gradients(layer, upstream, ctx.needs_input_grad[2:])


def _statistics(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the labels [S]; logsumexp(z) for each temperature [K, S]; for the entropy, sum(p z) at the first [S]."""
    spec, size = layer.spec, len(layer.labels)
    dtype = sum_dtype(layer.weights[0])
    at_label = layer.hidden[0].new_full((size,), torch.nan, dtype=dtype)  # stays NaN for a label that is no token
    lse = at_label.new_full((len(spec.temperatures), size), -torch.inf)
    mean = torch.zeros_like(at_label)
    for block in layer.blocks():
        for rows in layer.chunks():
            logits = layer.logits(rows, block)
            place, inside = layer.places(rows, block)
            at_label[rows] = torch.where(inside, logits.gather(1, place).squeeze(1).to(dtype), at_label[rows])
            largest = logits.amax(1).to(dtype)
            largest = largest.masked_fill(largest == -torch.inf, 0.0)  # where all tokens of the block are forbidden
            for k, temperature in enumerate(spec.temperatures):
                weights = _scaled(logits, 1 / temperature, -largest / temperature).exp_()
                total = weights.sum(1)
                before, lse[k, rows] = lse[k, rows].clone(), torch.logaddexp(lse[k, rows], total.log() + largest / temperature)
                if spec.entropy and k == 0:
                    of_block = weights.mul_(_finite(logits, layer)).sum(1) / temperature
                    after = lse[k, rows].clamp_min(torch.finfo(dtype).min)
                    mean[rows] = mean[rows] * (before - after).exp() + of_block * (largest / temperature - after).clamp_max(0.0).exp()
    return at_label, lse, mean


def _scaled(logits: Tensor, factor: float, shift: Tensor) -> Tensor:
    """logits * factor + shift[:, None] in the precision of the shift: one pass, which casts."""
    return torch.add(shift[:, None], logits, alpha=factor)


def _finite(logits: Tensor, layer: Layer) -> Tensor:
    """Forbidden tokens, which only a bias makes, have weight 0, and 0 times minus infinity is no number."""
    return logits if layer.bias is None else logits.clamp_min(torch.finfo(logits.dtype).min)


@dataclass(frozen=True)
class _Upstream:
    """What the backward pass is given, beside what the forward pass kept: gradients of log-probs and entropy, None where unused."""

    lse: Tensor
    mean: Tensor
    gradients: tuple[Tensor | None, ...]

    def of_layer(self, layer: Layer, rows: slice, block: slice) -> Tensor:
        """[rows, block]: the gradient of the layer's result, in the layer's dtype."""
        logits = layer.logits(rows, block)
        total, factor = self._of_logits(layer, logits, rows, block)
        transform = layer.spec.transform
        if transform.softcap is not None:
            total.mul_(logits.div_(transform.softcap).square_().neg_().add_(1.0))
        result = total if layer.dtype == total.dtype else torch.empty_like(total, dtype=layer.dtype)
        return torch.mul(total, (factor * transform.scale)[:, None], out=result)

    def _of_logits(self, layer: Layer, logits: Tensor, rows: slice, block: slice) -> tuple[Tensor, Tensor]:
        """The gradient of the logits, as a new tensor [rows, block] and a factor [rows]."""
        place, inside = layer.places(rows, block)
        parts = []
        for k, temperature in enumerate(layer.spec.temperatures):
            by_logprob = self.gradients[k]
            by_entropy = self.gradients[-1] if layer.spec.entropy and k == 0 else None
            if by_logprob is None and by_entropy is None:
                continue
            part = _scaled(logits, 1 / temperature, -self.lse[k, rows]).exp_()
            factor = (torch.zeros_like(self.mean) if by_logprob is None else by_logprob)[rows] / -temperature
            ones = inside.to(part.dtype).neg_()
            if by_entropy is not None:
                slope = by_entropy[rows] / -temperature
                part.mul_(_scaled(_finite(logits, layer), 1 / temperature, -self.mean[rows]).mul_(slope[:, None]).add_(factor[:, None]))
                ones, factor = ones * factor, torch.ones_like(factor)
            parts.append((part.scatter_add_(1, place, ones[:, None]), factor))
        if len(parts) == 1:
            return parts[0]
        total = parts[0][0].mul_(parts[0][1][:, None])
        for part, factor in parts[1:]:
            total.addcmul_(part, factor[:, None])
        return total, torch.ones_like(self.mean[rows])


def _gradients(layer: Layer, upstream: _Upstream, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Of the bias, then of each term's hidden states and weight; None where not wanted."""
    used = any(gradient is not None for gradient in upstream.gradients)
    if not used:
        return [None] * len(wanted)
    of_bias = torch.zeros_like(layer.bias) if layer.bias is not None and wanted[0] else None
    of_hidden = [torch.zeros_like(h, dtype=sum_dtype(h)) if need else None for h, need in zip(layer.hidden, wanted[1::2], strict=True)]
    of_weights = [torch.empty_like(w) if need else None for w, need in zip(layer.weights, wanted[2::2], strict=True)]
    for block in layer.blocks():
        sums = [None if w is None else torch.zeros_like(w[block], dtype=sum_dtype(w)) for w in of_weights]
        bias_sum = None if of_bias is None else torch.zeros_like(of_bias[block], dtype=sum_dtype(of_bias))
        for rows in layer.chunks():
            gradient = upstream.of_layer(layer, rows, block)
            for i, (hidden, weight) in enumerate(zip(layer.hidden, layer.weights, strict=True)):
                if (total := of_hidden[i]) is not None:
                    add_product(total[rows], gradient.to(weight.dtype), weight[block])
                if (total := sums[i]) is not None:
                    add_product(total, gradient.to(hidden.dtype).T, hidden[rows])
            if bias_sum is not None:
                bias_sum += gradient.sum(0, dtype=bias_sum.dtype)
        for whole, part in zip([of_bias, *of_weights], [bias_sum, *sums], strict=True):
            if whole is not None and part is not None:
                whole[block] = part
    pairs = zip(of_hidden, of_weights, strict=True)
    hidden_types = [None if h is None else h.to(term.dtype) for h, term in zip(of_hidden, layer.hidden, strict=True)]
    return [of_bias, *(tensor for pair in zip(hidden_types, (w for _, w in pairs), strict=True) for tensor in pair)]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right in the total's precision, also for factors of half of it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
