"""The log-probs and entropies of an output layer by blocks of tokens and of the vocabulary, with the gradient written out.

With z the logits over the temperature, p = softmax(z), m = sum(p z) and H = logsumexp(z) - m:
d logprob / d z_j = [j = label] - p_j and d H / d z_j = -p_j (z_j - m). Each block of z is computed a second time in the backward pass.

What is done to a block takes most of the time beside the products of matrices, so each line that touches one is a pass over memory that was
counted: casts ride on the arithmetic, factors are applied to the [rows] they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightrft.models.logprob_spec import LogitTransform, LogprobSpec, sum_dtype
from lightrft.models.output_layer import OutputLayer

Tensor = torch.Tensor

VOCAB_BLOCK = {"cpu": 4096, "cuda": 16384, "meta": 16384}
"""Tokens of the vocabulary at a time: what a processor multiplies at full speed, and a GPU."""


@dataclass(frozen=True)
class _Blocks:
    """An output layer with what is asked of it."""

    spec: LogprobSpec
    labels: Tensor
    layer: OutputLayer

    @staticmethod
    def of(spec: LogprobSpec, labels: Tensor, bias: Tensor | None, *tensors: Tensor) -> _Blocks:
        assert spec.chunk_size is not None
        block = VOCAB_BLOCK[labels.device.type]
        return _Blocks(spec, labels, OutputLayer(tensors[0::2], tensors[1::2], bias, chunk_size=spec.chunk_size, vocab_block=block))

    def logits(self, rows: slice, block: slice) -> Tensor:
        """[rows, block]: the layer's result as it is, or transformed, then in `sum_dtype`."""
        raw = self.layer.result(rows, block)
        return raw if self.spec.transform == LogitTransform() else self.spec.transform(raw.to(sum_dtype(raw)))

    def finite(self, logits: Tensor) -> Tensor:
        """Forbidden tokens, which only a bias makes, have weight 0, and 0 times minus infinity is no number."""
        return logits if self.layer.bias is None else logits.clamp_min(torch.finfo(logits.dtype).min)

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
        at_label, lse, mean = _statistics(_Blocks.of(spec, labels, bias, *tensors))
        ctx.save_for_backward(labels, bias, lse, mean, *tensors)
        temperatures = torch.tensor(spec.temperatures, dtype=lse.dtype).to(lse.device, non_blocking=True)
        logprobs = at_label / temperatures[:, None] - lse
        return (*logprobs, lse[0] - mean) if spec.entropy else tuple(logprobs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        labels, bias, lse, mean, *tensors = ctx.saved_tensors
        upstream = _Upstream(_Blocks.of(ctx.spec, labels, bias, *tensors), lse, mean, gradients)
        return None, None, *upstream.blocks.layer.gradients(upstream.of_result, ctx.needs_input_grad[2:])


def _statistics(blocks: _Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the labels [S]; logsumexp(z) for each temperature [K, S]; for the entropy, sum(p z) at the first [S]."""
    spec, layer = blocks.spec, blocks.layer
    dtype, size = sum_dtype(layer.weights[0]), len(blocks.labels)
    at_label = layer.hidden[0].new_full((size,), torch.nan, dtype=dtype)  # stays NaN for a label that is no token
    lse = at_label.new_full((len(spec.temperatures), size), -torch.inf)
    mean = torch.zeros_like(at_label)
    for block in layer.blocks:
        for rows in layer.chunks:
            logits = blocks.logits(rows, block)
            place, inside = blocks.places(rows, block)
            at_label[rows] = torch.where(inside, logits.gather(1, place).squeeze(1).to(dtype), at_label[rows])
            largest = logits.amax(1).to(dtype)
            largest = largest.masked_fill(largest == -torch.inf, 0.0)  # where all tokens of the block are forbidden
            for k, temperature in enumerate(spec.temperatures):
                weights = _scaled(logits, 1 / temperature, -largest / temperature).exp_()
                total = weights.sum(1)
                before, lse[k, rows] = lse[k, rows].clone(), torch.logaddexp(lse[k, rows], total.log() + largest / temperature)
                if spec.entropy and k == 0:
                    of_block = weights.mul_(blocks.finite(logits)).sum(1) / temperature
                    after = lse[k, rows].clamp_min(torch.finfo(dtype).min)
                    mean[rows] = mean[rows] * (before - after).exp() + of_block * (largest / temperature - after).clamp_max(0.0).exp()
    return at_label, lse, mean


def _scaled(logits: Tensor, factor: float, shift: Tensor) -> Tensor:
    """logits * factor + shift[:, None] in the precision of the shift: one pass, which casts."""
    return torch.add(shift[:, None], logits, alpha=factor)


@dataclass(frozen=True)
class _Upstream:
    """What the backward pass is given, beside what the forward pass kept: gradients of log-probs and entropy, None where unused."""

    blocks: _Blocks
    lse: Tensor
    mean: Tensor
    gradients: tuple[Tensor | None, ...]

    def of_result(self, rows: slice, block: slice) -> Tensor:
        """[rows, block]: the gradient of the layer's result, in its dtype."""
        logits = self.blocks.logits(rows, block)
        total, factor = self._of_logits(logits, rows, block)
        transform = self.blocks.spec.transform
        if transform.softcap is not None:
            total.mul_(logits.div_(transform.softcap).square_().neg_().add_(1.0))
        result = total if self.blocks.layer.dtype == total.dtype else torch.empty_like(total, dtype=self.blocks.layer.dtype)
        return torch.mul(total, (factor * transform.scale)[:, None], out=result)

    def _of_logits(self, logits: Tensor, rows: slice, block: slice) -> tuple[Tensor, Tensor]:
        """The gradient of the logits, as a new tensor [rows, block] and a factor [rows]."""
        place, inside = self.blocks.places(rows, block)
        parts = []
        for k, temperature in enumerate(self.blocks.spec.temperatures):
            by_logprob = self.gradients[k]
            by_entropy = self.gradients[-1] if self.blocks.spec.entropy and k == 0 else None
            if by_logprob is None and by_entropy is None:
                continue
            part = _scaled(logits, 1 / temperature, -self.lse[k, rows]).exp_()
            factor = (torch.zeros_like(self.mean) if by_logprob is None else by_logprob)[rows] / -temperature
            ones = inside.to(part.dtype).neg_()
            if by_entropy is not None:
                slope = by_entropy[rows] / -temperature
                part.mul_(_scaled(self.blocks.finite(logits), 1 / temperature, -self.mean[rows]).mul_(slope[:, None]).add_(factor[:, None]))
                ones, factor = ones * factor, torch.ones_like(factor)
            parts.append((part.scatter_add_(1, place, ones[:, None]), factor))
        if len(parts) == 1:
            return parts[0]
        total = parts[0][0].mul_(parts[0][1][:, None])
        for part, factor in parts[1:]:
            total.addcmul_(part, factor[:, None])
        return total, torch.ones_like(self.mean[rows])
