"""Metrics of a step: sums and maxima that every rank collects, reduced once over all ranks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lightrft.distributed.collectives import Group, gather_rows

Finish = Callable[[Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class _Part:
    sums: dict[str, float]
    largest: dict[str, float]
    finish: Finish


class StepMetrics:
    """What parts of a step have counted on this rank. Every rank adds the same parts in the same order, with whatever numbers."""

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}

    def add(
        self, part: str, sums: Mapping[str, float], finish: Finish, *, largest: Mapping[str, float] | None = None, copies: int = 1
    ) -> None:
        """`finish` makes metrics from the sums over all ranks of `sums` and the largest of `largest`, under their names. Local.

        `copies`: so many ranks count the same things. A part that is there already grows: a phase may run several times in a step.
        """
        sums = {name: value / copies for name, value in sums.items()}
        before = self._parts.get(part)
        if before is not None:
            sums = {name: value + before.sums[name] for name, value in sums.items()}
            largest = {name: max(value, before.largest[name]) for name, value in (largest or {}).items()}
        self._parts[part] = _Part(dict(sums), dict(largest or {}), finish)

    def mean(self, name: str, total: float, count: float) -> None:
        """Metric `name`: all totals over all counts, 0 where nothing was counted. Local."""
        self.add(name, {"total": total, "count": count}, lambda found: {name: found["total"] / max(found["count"], 1.0)})

    def reduce(self, group: Group) -> dict[str, float]:
        """The metrics, the same on every rank, in one message; nothing is left for the next reduction. Collective.

        Raises:
            AssertionError: ranks have added other parts.
        """
        named, self._parts = self._parts, {}
        names = [f"{part}/{name}" for part, held in named.items() for name in (*held.sums, *held.largest)]
        parts = list(named.values())
        key = float(zlib.crc32("\n".join(names).encode()))
        mine = [key, *(value for part in parts for value in (*part.sums.values(), *part.largest.values()))]
        rows = gather_rows(torch.tensor(mine, dtype=torch.float64), group=group)
        assert all(row[0] == key for row in rows.tolist()), "ranks have collected different metrics in one step"
        found: dict[str, float] = {}
        start = 1
        for part in parts:
            middle, end = start + len(part.sums), start + len(part.sums) + len(part.largest)
            total = dict(zip(part.sums, rows[:, start:middle].sum(0).tolist(), strict=True))
            total |= dict(zip(part.largest, rows[:, middle:end].amax(0).tolist() if part.largest else [], strict=True))
            found |= part.finish(total)
            start = end
        return found
