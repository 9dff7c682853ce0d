"""Means over the completions of one prompt. Groups are named by ids: of any size, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Groups:
    """`index` [N]: the number of each completion's group; `counts` [G]: how many each group has."""

    index: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, group_ids: torch.Tensor) -> Groups:
        """From ids [N] int64."""
        _, index, counts = torch.unique(group_ids, return_inverse=True, return_counts=True)
        return cls(index, counts)

    @property
    def sizes(self) -> torch.Tensor:
        """[N]: how many completions the group of each has."""
        return self.counts[self.index]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """[N]: for each completion the sum of `values` [N] over its group."""
        return values.new_zeros(len(self.counts)).index_add(0, self.index, values)[self.index]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """[N]: for each completion the mean of `values` [N] over its group."""
        return self.sum(values) / self.sizes
