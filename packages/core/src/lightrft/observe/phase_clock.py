"""The time, tokens and memory of each phase of a step; a phase may be replaced by a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

from lightrft.distributed.collectives import all_reduce, gather_rows
from lightrft.distributed.world import World
from lightrft.errors import nearest
from lightrft.observe.compiler import graphs_made

PHASES = ("rollout", "reward", "logprob", "advantage", "update", "sync", "evaluate")
"""The methods of the trainer that are measured and may be replaced."""

PhaseFunction = Callable[..., Any]
"""`(trainer, *arguments of the phase)`; it stands for the phase's method, which it may call as `SPMDPPOTrainer.NAME(trainer, ...)`."""


class PhaseClock:
    """Measures the phases of a step on this rank and merges what they return, if it is a mapping, into `metrics`.

    Calls of one phase within a step add up. Time that a phase gives itself (`time/NAME_s` in what it returns) stands instead of the
    measured one. Only `close` is collective.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.metrics: dict[str, float] = {}
        self._running: list[str] = []
        self.ranks: list[dict[str, tuple[float, float]]] = []
        """Of the last step that was closed, of each rank: where each phase first began and how long it took, in seconds."""
        self._begins: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, float] = {}
        self._memory_gib: dict[str, float] = {}
        self._start = time.perf_counter()

    def start(self) -> None:
        """A new step: nothing measured yet."""
        for store in (self.metrics, self._begins, self._seconds, self._tokens, self._memory_gib):
            store.clear()
        self._start = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Called inside a phase: it has dealt with so many more tokens on this rank."""
        if self._running:
            name = self._running[-1]
            self._tokens[name] = self._tokens.get(name, 0.0) + tokens

    def measured(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method` as phase `name`: called the same, and measured."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.world.memory.restart()
            self._running.append(name)
            start = time.perf_counter()
            try:
                with self.world.stamp.entering(name):
                    result = method(*args, **kwargs)
            finally:
                self._running.pop()
            seconds = time.perf_counter() - start
            if isinstance(result, Mapping):
                self.metrics.update(result)
                seconds = float(result.get(f"time/{name}_s", seconds))
            self._begins.setdefault(name, start - self._start)
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            self._memory_gib[name] = max(self._memory_gib.get(name, 0.0), self.world.memory.gib())
            return result

        return call

    def close(self) -> dict[str, float]:
        """The step's `time/NAME_s` and `time/step_s`, `memory/NAME_gib` (of the slowest and the fullest rank), `tokens/NAME` (of all
        ranks) and, where blocks are compiled, `compile/graphs`. One message gathers the times and one sums the tokens. Collective: every
        rank has run the same phases.
        """
        step_s = time.perf_counter() - self._start
        largest = {f"time/{name}_s": value for name, value in self._seconds.items()} | {"time/step_s": step_s}
        largest |= {f"memory/{name}_gib": value for name, value in self._memory_gib.items()}
        if (graphs := graphs_made()) is not None:
            largest["compile/graphs"] = float(graphs)
        row = torch.tensor([*largest.values(), *(self._begins[name] for name in self._seconds)], dtype=torch.float64)
        rows = gather_rows(row, group=self.world.group)
        self.ranks = [
            {name: (rank[len(largest) + place], rank[place]) for place, name in enumerate(self._seconds)} for rank in rows.tolist()
        ]
        return dict(zip(largest, rows.amax(0).tolist(), strict=False)) | self._summed()

    def _summed(self) -> dict[str, float]:
        names = sorted(self._tokens)
        if not names:
            return {}
        row = torch.tensor([self._tokens[name] for name in names], dtype=torch.float64)
        sums = all_reduce(row, op="sum", group=self.world.group, device=self.world.device)
        return {f"tokens/{name}": value for name, value in zip(names, sums.tolist(), strict=True)}


def check_phase_names(functions: Mapping[str, PhaseFunction]) -> None:
    """Raises ValueError for a name that is no phase; the nearest one is named."""
    for name in functions:
        if name not in PHASES:
            raise ValueError(f"unknown phase {name!r}{nearest(name, PHASES)} (phases: {', '.join(PHASES)})")
