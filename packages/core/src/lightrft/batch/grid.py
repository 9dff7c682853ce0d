"""Sampled tokens of sequences as rows: between flat columns [M] and the padded [N, T] of losses and estimators."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """Where each of M sampled tokens stands in [N, T]: row by row, T the most of any sequence.

    `rows`, `cols` int64 [M]. Tokens that nobody sampled have no place, so rows have no holes.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, counts: torch.Tensor) -> Grid:
        """From the number of sampled tokens of each sequence, int64 [N] on the CPU."""
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        starts = counts.cumsum(0) - counts
        cols = torch.arange(len(rows)) - starts[rows]
        return cls(rows, cols, (len(counts), int(counts.max()) if len(counts) else 0))

    def to(self, device: torch.device) -> Grid:
        """The same on a device; the copy does not wait."""
        return Grid(self.rows.to(device, non_blocking=True), self.cols.to(device, non_blocking=True), self.shape)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[M] to [N, T], 0 where there is no token; gradients flow."""
        return values.new_zeros(self.shape).index_put((self.rows, self.cols), values)

    def flat(self, values: torch.Tensor) -> torch.Tensor:
        """[N, T] to [M]."""
        return values[self.rows, self.cols]

    def mask(self) -> torch.Tensor:
        """float32 [N, T]: 1 where there is a token."""
        return self.spread(torch.ones(len(self.rows), device=self.rows.device))
