"""Sequences that are worked on by another rank than theirs: there, and what was found of them back home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from lightrft.batch.exchange import exchange, send_rows, without_samples
from lightrft.batch.stages import Sampled, token_index
from lightrft.distributed.mesh import Axis

Stage = TypeVar("Stage", bound=Sampled)


@dataclass(frozen=True)
class Dealing:
    """For each of this rank's sequences the rank of `axis` that works on it (`targets` int64 [N]), and for each that comes here its rank
    and place at home (`origins` int64 [K, 2]), in the order of arrival: the ones that stay first, then rank by rank.
    """

    targets: torch.Tensor
    origins: torch.Tensor
    axis: Axis
    moves: bool

    @classmethod
    def at_home(cls, number: int, axis: Axis) -> Dealing:
        """Every sequence stays; nothing is exchanged."""
        own = torch.full((number,), axis.rank, dtype=torch.int64)
        return cls(own, torch.stack([own, torch.arange(number)], dim=1), axis, moves=False)

    @classmethod
    def of(cls, owner: torch.Tensor, place: torch.Tensor, targets: torch.Tensor, axis: Axis) -> tuple[Dealing, torch.Tensor]:
        """From all ranks' sequences, rank by rank: whose each is, its place there, where it goes. Also, of the ones that come here, their
        numbers among all, in the order of arrival.
        """
        here = (targets == axis.rank).nonzero().flatten()
        stay = owner[here] == axis.rank
        coming = torch.cat([here[stay], here[~stay]])
        origins = torch.stack([owner[coming], place[coming]], dim=1)
        return cls(targets[owner == axis.rank], origins, axis, moves=True), coming

    def there(self, batch: Stage) -> Stage:
        """The sequences that come here, without their samples. Collective."""
        return exchange(without_samples(batch), self.targets, group=self.axis.group) if self.moves else batch

    def home(self, column: torch.Tensor, *, there: Sampled, batch: Sampled) -> torch.Tensor:
        """A column float32 [S'] of `there`'s tokens on the tokens [S] of `batch`, where they came from. Collective."""
        if not self.moves:
            return column
        places = [(self.origins[:, 0] == rank).nonzero().flatten() for rank in range(self.axis.size)]
        sent = [column[token_index(there.offsets, index)[0]][:, None] for index in places]
        mine = [(self.targets == rank).nonzero().flatten() for rank in range(self.axis.size)]
        tokens = [token_index(batch.offsets, index)[0] for index in mine]
        arrived = send_rows(sent, [len(part) for part in tokens], group=self.axis.group)
        out = torch.zeros(len(batch.token_ids), dtype=column.dtype)
        for part, values in zip(tokens, arrived, strict=True):
            out[part] = values[:, 0]
        return out
