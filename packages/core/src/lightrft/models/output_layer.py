"""An output layer, taken by blocks of tokens and of the vocabulary: its results, and its gradients summed over blocks in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lightrft.models.logprob_spec import sum_dtype

Tensor = torch.Tensor


@dataclass(frozen=True)
class OutputLayer:
    """Hidden states [S, H_i] and weights [V, H_i], whose products are summed, and perhaps a bias [V].

    `chunk_size` tokens and `vocab_block` tokens of the vocabulary are taken at a time.
    """

    hidden: Sequence[Tensor]
    weights: Sequence[Tensor]
    bias: Tensor | None
    chunk_size: int
    vocab_block: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        return self.weights[0].dtype

    @property
    def chunks(self) -> list[slice]:
        """Slices of the tokens; one empty slice where there are none."""
        return [slice(first, first + self.chunk_size) for first in range(0, max(len(self.hidden[0]), 1), self.chunk_size)]

    @property
    def blocks(self) -> list[slice]:
        """Slices of the vocabulary."""
        size, step = len(self.weights[0]), self.vocab_block
        return [slice(first, min(first + step, size)) for first in range(0, size, step)]

    def result(self, rows: slice, block: slice) -> Tensor:
        """[rows, block]."""
        bias = None if self.bias is None else self.bias[block]
        raw = torch.nn.functional.linear(self.hidden[0][rows], self.weights[0][block], bias)
        for hidden, weight in zip(self.hidden[1:], self.weights[1:], strict=True):
            raw = raw + hidden[rows] @ weight[block].T
        return raw

    def gradients(self, of_result: Callable[[slice, slice], Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of the bias, then of each pair's hidden states and weight; None where not wanted. `of_result` gives the gradient of `result`."""
        of_bias = torch.zeros_like(self.bias) if self.bias is not None and wanted[0] else None
        of_hidden = [_zeros(tensor) if need else None for tensor, need in zip(self.hidden, wanted[1::2], strict=True)]
        of_weights = [torch.empty_like(tensor) if need else None for tensor, need in zip(self.weights, wanted[2::2], strict=True)]
        for block in self.blocks:
            sums = [None if whole is None else _zeros(whole[block]) for whole in (of_bias, *of_weights)]
            for rows in self.chunks:
                self._add(of_result(rows, block), rows, block, of_hidden, sums)
            for whole, part in zip((of_bias, *of_weights), sums, strict=True):
                if whole is not None and part is not None:
                    whole[block] = part
        found = [of_bias]
        for hidden, total, of_weight in zip(self.hidden, of_hidden, of_weights, strict=True):
            found += [None if total is None else total.to(hidden.dtype), of_weight]
        return found

    def _add(self, gradient: Tensor, rows: slice, block: slice, of_hidden: list[Tensor | None], sums: list[Tensor | None]) -> None:
        """Adds what a block gives, in place; `sums` are those of the bias and the weights."""
        of_bias, *of_weights = sums
        if of_bias is not None:
            of_bias += gradient.sum(0, dtype=of_bias.dtype)
        for i, (hidden, weight) in enumerate(zip(self.hidden, self.weights, strict=True)):
            if (total := of_hidden[i]) is not None:
                add_product(total[rows], gradient.to(weight.dtype), weight[block])
            if (total := of_weights[i]) is not None:
                add_product(total, gradient.to(hidden.dtype).T, hidden[rows])


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right in the total's precision, also for factors of half of it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        total.add_(torch.mm(left, right, out_dtype=total.dtype))
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=sum_dtype(like))
