"""The labels of a micro-batch whose row is shared by the ranks of a sequence: which rank's logits predict which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightrft.distributed.mesh import Axis
from lightrft.distributed.sequence import gather

ALONE = Axis(ranks=(0,), rank=0, group=None)
"""Of rows that nobody shares."""


@dataclass(frozen=True, kw_only=True)
class LabelParts:
    """`counts[r]` labels are predicted on rank r of `axis`; they come in the order of the ranks."""

    axis: Axis
    counts: tuple[int, ...]

    @classmethod
    def of(cls, at: torch.Tensor, length: int, axis: Axis) -> LabelParts:
        """Of labels whose logits stand at `at` int64 [M], ascending, of a row of which each rank has `length` tokens."""
        owners = torch.div(at, length, rounding_mode="floor")
        return cls(axis=axis, counts=tuple(torch.bincount(owners, minlength=axis.size).tolist()))

    @property
    def mine(self) -> slice:
        """This rank's among all."""
        start = sum(self.counts[: self.axis.rank])
        return slice(start, start + self.counts[self.axis.rank])

    def whole(self, columns: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Columns [M] of all labels, on every rank, from this rank's [m]. Collective, one message.

        Differentiable where every rank computes the same loss from them (`sequence.gather`). A rank without labels takes part in the
        backward pass as well: what it gets is empty or zero, and is connected to its forward pass.
        """
        widest = max(self.counts)
        if self.axis.size == 1 or widest == 0:
            return list(columns)
        part = torch.nn.functional.pad(torch.stack(list(columns)), (0, widest - self.counts[self.axis.rank]))
        table = gather(part, widest * self.axis.size, self.axis)
        places = [torch.arange(count) + rank * widest for rank, count in enumerate(self.counts)]
        return list(table[:, torch.cat(places).to(table.device, non_blocking=True)])
