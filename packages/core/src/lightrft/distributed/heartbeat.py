"""What a rank shows of itself while it works, for others to read without asking: phase, collective, and a count of its moves."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

FRAMES = 12
WRAPPERS = ("wrapper", "_call_impl", "decorate_context")
WAITS_IN = ("torch.distributed.distributed_c10d", "torch.distributed._functional_collectives", "torch.distributed.fsdp")
"""Modules whose functions a rank is in while it waits for others."""

LEFT, FAILED = -1, -2
"""The number of a rank's last heartbeat: it has finished, or an error took it out."""


class Stamp:
    """The present phase of this rank. The trainer writes, a watching thread reads; nothing here waits for anything. Local."""

    def __init__(self) -> None:
        self.step = 0
        self.watched = False
        self._phases = ["start"]
        self.visits: dict[str, int] = {}
        self.publish: Callable[[Stamp], None] = lambda stamp: None
        """Called at every change of the phase, by the thread that changes it: what a rank that is stopped a moment later was in."""

    @property
    def phase(self) -> str:
        """The innermost phase."""
        return self._phases[-1]

    @contextmanager
    def entering(self, phase: str) -> Iterator[None]:
        """The block is in that phase."""
        self._phases.append(phase)
        self.visits[phase] = self.visits.get(phase, 0) + 1
        self.publish(self)
        try:
            yield
        finally:
            self._phases.pop()
            self.publish(self)

    def moves(self) -> list[int]:
        """A row of numbers that changes with every phase and with every collective of any group, also those within FSDP or DeepSpeed."""
        return [self.step, sum(self.visits.values()), len(self._phases), collectives_begun()]


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat. `still_s`: seconds without a move; `limit_s`: how many it may be. `collective` is empty outside of one; `calls` is how
    many collectives the rank has begun.
    """

    rank: int
    number: int
    phase: str
    step: int
    calls: int
    collective: str
    where: str
    stack: list[str]
    still_s: float
    limit_s: float
    host: str
    process: int

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Beat:
        return cls(**json.loads(text))

    @property
    def place(self) -> str:
        """In words: phase, step, collective, function."""
        return f"phase {self.phase} of step {self.step}, {self.inside}, at {self.where}"

    @property
    def inside(self) -> str:
        """In words: the collective, or after how many."""
        return f"in collective {self.collective} (number {self.calls})" if self.collective else f"after {self.calls} collectives"


def beat(stamp: Stamp, *, rank: int, number: int, still_s: float, limit_s: float) -> Beat:
    """The heartbeat of now, from another thread than the main one."""
    collective, where, stack = _position(sys._current_frames().get(threading.main_thread().ident or 0))
    return Beat(
        rank=rank, number=number, phase=stamp.phase, step=stamp.step, calls=collectives_begun(), collective=collective, where=where,
        stack=stack, still_s=still_s, limit_s=limit_s, host=socket.gethostname(), process=os.getpid(),
    )  # fmt: skip


def collectives_begun() -> int:
    """Collectives that this rank has entered, over all groups."""
    if not dist.is_initialized():
        return 0
    known = getattr(getattr(dist.distributed_c10d, "_world", None), "pg_names", {})
    return sum(_begun(group) for group in list(known))


def _begun(group: Any) -> int:
    try:
        return int(group._get_sequence_number_for_group())
    except RuntimeError:  # a group of another kind, which has no numbers
        return 0


def _position(frame: FrameType | None) -> tuple[str, str, list[str]]:
    """The collective that the thread is in, the innermost function of LightRFT, and the innermost lines of its stack."""
    collective = where = ""
    stack: list[str] = []
    while frame is not None:
        path, name, module = Path(frame.f_code.co_filename), frame.f_code.co_name, str(frame.f_globals.get("__name__", ""))
        if len(stack) < FRAMES:
            stack.append(f"{path.parent.name}/{path.name}:{frame.f_lineno} in {name}")
        if module.startswith(WAITS_IN) and not where and name not in WRAPPERS:
            collective = name  # the outermost such function below ours
        if module.startswith("lightrft") and not where:
            where = f"{name} ({path.name}:{frame.f_lineno})"
        frame = frame.f_back
    return collective, where or (stack[0] if stack else "no Python code"), stack[::-1]


class Clock:
    """Since when this rank has not moved, and how long it ever stood in each phase. Local; used by one thread."""

    def __init__(self) -> None:
        self._moves: list[int] = []
        self._visit: list[int] = []
        self._since = time.monotonic()
        self._longest: dict[str, float] = {}
        self._past: dict[str, float] = {}

    def still_s(self, stamp: Stamp) -> float:
        """Seconds since the last move, as far as this was called in between."""
        now, moves = time.monotonic(), stamp.moves()
        if moves != self._moves:
            self._moves, self._since = moves, now
        still = now - self._since
        self._longest[stamp.phase] = max(self._longest.get(stamp.phase, 0.0), still)
        if moves[:2] != self._visit:  # another visit of a phase: what stood still before is its past
            self._visit, self._past = moves[:2], dict(self._longest)
        return still

    def before(self, stamp: Stamp) -> float:
        """How long the rank stood still at most in earlier visits of its phase."""
        return self._past.get(stamp.phase, 0.0)
