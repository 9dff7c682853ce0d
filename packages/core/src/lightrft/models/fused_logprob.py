"""The log-probs and entropies of an output layer by blocks of tokens and of the vocabulary, with the gradient written out.

With z the logits over the temperature, p = softmax(z), m = sum(p z) and H = logsumexp(z) - m:
d logprob / d z_j = [j = label] - p_j and d H / d z_j = -p_j (z_j - m). Each block of z is computed a second time in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.models.logprob_spec import LogprobSpec, chunks_of, sum_dtype

Tensor = torch.Tensor

VOCAB_BLOCK = 4096


@dataclass(frozen=True)
class Layer:
    """An output layer and what goes into it. See `linear_logprob.Terms`."""

    spec: LogprobSpec
    labels: Tensor
    bias: Tensor | None
    hidden: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def chunks(self) -> list[slice]:
        """Slices of the tokens."""
        assert self.spec.chunk_size is not None
        return chunks_of(self.labels, self.spec.chunk_size)

    def blocks(self) -> Iterator[slice]:
        """Slices of the vocabulary."""
        size = len(self.weights[0])
        return (slice(first, min(first + VOCAB_BLOCK, size)) for first in range(0, size, VOCAB_BLOCK))

    def logits(self, rows: slice, block: slice) -> Tensor:
        """[rows, block], transformed. Nothing else holds the result."""
        bias = None if self.bias is None else self.bias[block]
        raw = torch.nn.functional.linear(self.hidden[0][rows], self.weights[0][block], bias)
        for hidden, weight in zip(self.hidden[1:], self.weights[1:], strict=True):
            raw = raw + hidden[rows] @ weight[block].T
        return self.spec.transform(raw.to(sum_dtype(raw)))

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
    lowest = torch.finfo(dtype).min
    for block in layer.blocks():
        for rows in layer.chunks():
            logits = layer.logits(rows, block)
            place, inside = layer.places(rows, block)
            at_label[rows] = torch.where(inside, logits.gather(1, place).squeeze(1), at_label[rows])
            for k, temperature in enumerate(spec.temperatures):
                z = logits if temperature == 1.0 else logits / temperature
                of_block = z.logsumexp(-1)
                total = torch.logaddexp(lse[k, rows], of_block)
                if spec.entropy and k == 0:
                    safe = total.clamp_min(lowest)  # where all tokens so far are forbidden
                    of_z = (z - safe[:, None]).exp_().mul_(z.clamp_min(lowest)).sum(-1)
                    mean[rows] = mean[rows] * (lse[k, rows] - safe).exp() + of_z
                lse[k, rows] = total
    return at_label, lse, mean


@dataclass(frozen=True)
class _Upstream:
    """What the backward pass is given, beside what the forward pass kept: gradients of log-probs and entropy, None where unused."""

    lse: Tensor
    mean: Tensor
    gradients: tuple[Tensor | None, ...]

    def of_logits(self, layer: Layer, rows: slice, block: slice) -> Tensor:
        """[rows, block]: the gradient of the layer's result, before the transform."""
        logits = layer.logits(rows, block)
        place, inside = layer.places(rows, block)
        temperatures = layer.spec.temperatures
        total = None
        for k, temperature in enumerate(temperatures):
            by_logprob = self.gradients[k]
            by_entropy = self.gradients[-1] if layer.spec.entropy and k == 0 else None
            if by_logprob is None and by_entropy is None:
                continue
            z = logits if temperature == 1.0 else logits / temperature
            part = (z - self.lse[k, rows, None]).exp_()
            if by_entropy is not None:
                factor = z.clamp_min(torch.finfo(z.dtype).min).sub_(self.mean[rows, None]).mul_(by_entropy[rows, None])
                part.mul_(factor if by_logprob is None else factor.add_(by_logprob[rows, None])).neg_()
            elif by_logprob is not None:
                part.mul_(-by_logprob[rows, None])
            if by_logprob is not None:
                part.scatter_add_(1, place, torch.where(inside, by_logprob[rows], 0.0)[:, None])
            part = part if temperature == 1.0 else part.div_(temperature)
            total = part if total is None else total.add_(part)
        assert total is not None
        return _through(layer, total, logits)


def _through(layer: Layer, gradient: Tensor, logits: Tensor) -> Tensor:
    """The chain rule through the transform, whose result the logits are."""
    transform = layer.spec.transform
    if transform.softcap is not None:
        gradient.mul_(logits.div_(transform.softcap).square_().neg_().add_(1.0))
    return gradient if transform.scale == 1.0 else gradient.mul_(transform.scale)


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
            gradient = upstream.of_logits(layer, rows, block)
            for i, (hidden, weight) in enumerate(zip(layer.hidden, layer.weights, strict=True)):
                if (total := of_hidden[i]) is not None:
                    add_product(total[rows], gradient.to(weight.dtype), weight[block])
                if (total := sums[i]) is not None:
                    add_product(total, gradient.to(hidden.dtype).T, hidden[rows])
            if bias_sum is not None:
                bias_sum += gradient.sum(0)
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
