"""What ends a run that hangs: a thread in each rank that shows where it is, looks where the others are, and names who holds them up."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightrft.config.hang_limits import HangLimits
from lightrft.distributed.failure import leave, leave_hung, leave_lost, report_hang, stacks
from lightrft.distributed.flight_recorder import last_collectives
from lightrft.distributed.hang import Hang, judge
from lightrft.distributed.heartbeat import FAILED, LEFT, Beat, Clock, Stamp, beat
from lightrft.distributed.world import World
from lightrft.errors import HangError, LightRFTError

BEAT_S = 1.0
LOOKS_AFTER_S = 5.0
"""A rank that has moved within this time does not look at others."""

LOST_AFTER_S = 10.0
"""A rank that stands still for so long while another has failed, or its process is gone, ends. On gloo a collective raises at once then; on
nccl it waits, and SIGTERM, which the launcher sends, only asks a rank to save.
"""

STACKS_WITHIN_S = 5.0
STORE_ANSWERS_WITHIN_S = 30
PREFIX = "lightrft/watch"


@contextmanager
def ends_after(seconds: float, *, error: LightRFTError, where: str, rank: int) -> Iterator[None]:
    """The process ends, with `error` and all stacks reported, when the block takes longer; 0 is no limit.

    Nothing can be raised into a call that hangs in C++, so nothing is. A call that also keeps Python's global lock stops this thread, too;
    then the other ranks' watchdogs name it.
    """
    if not seconds:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        if not done.wait(min(seconds, threading.TIMEOUT_MAX)):
            leave_hung(error, where=where, rank=rank)

    watcher = threading.Thread(target=watch, name="lightrft-watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def watching(world: World, limits: HangLimits) -> Iterator[None]:
    """Within the block a rank that stands still for longer than its phase's limit is named by a rank that does not, and the run ends.

    Every rank of the world enters it. Nothing within another such block, nor with a default limit of 0. The groups' own time limits, at
    which torch would blame the rank that waits, are put beyond those of all phases.
    """
    if world.stamp.watched or not limits.default:
        yield
        return
    _lift_group_limits(limits)
    watch = _Watch(world, limits)
    world.stamp.watched, world.stamp.publish = True, watch.publish
    watch.show(watch.beat())  # before anything can stop this rank
    watch.start()
    last = FAILED
    try:
        yield
        last = LEFT
    finally:
        watch.done.set()
        watch.join()
        watch.leave(last)
        world.stamp.watched, world.stamp.publish = False, lambda stamp: None


class _Watch(threading.Thread):
    """Beats once a second; looks at the beats of others only while its own rank stands still, so a run at work costs one small write."""

    def __init__(self, world: World, limits: HangLimits) -> None:
        super().__init__(name="lightrft-watch", daemon=True)
        self.world, self.limits, self.clock = world, limits, Clock()
        self.done = threading.Event()
        self.store, self.phases = _store(world), _store(world)
        self.seen: dict[int, tuple[Beat, float]] = {}
        self.number, self.started = 0, time.monotonic()

    def run(self) -> None:
        while not self.done.wait(BEAT_S):
            try:
                self.once()
            except (RuntimeError, OSError):  # the store has gone: the run is ending, or its host is lost, which the collectives tell
                if self.done.wait(LOOKS_AFTER_S):
                    return

    def once(self) -> None:
        """One beat, and a look around."""
        mine = self.beat()
        self.show(mine)
        if self.store is not None and self.store.check([f"{PREFIX}/stacks"]):
            self.store.set(f"{PREFIX}/stacks/{mine.rank}", stacks() + last_collectives())
        if mine.still_s > LOOKS_AFTER_S:
            self.look(mine)

    def beat(self) -> Beat:
        self.number += 1
        stamp = self.world.stamp
        still = self.clock.still_s(stamp)
        limit = self.limits.of(stamp.phase, visits=stamp.visits.get(stamp.phase, 1) - 1, longest=self.clock.before(stamp))
        return beat(stamp, rank=self.world.rank, number=self.number, still_s=still, limit_s=limit)

    def publish(self, stamp: Stamp) -> None:
        """The phase, at once, over a connection that the main thread alone uses."""
        if self.phases is not None:
            with suppress(RuntimeError, OSError):  # a store that has gone is told by others
                self.phases.set(f"{PREFIX}/phase/{self.world.rank}", json.dumps([stamp.phase, stamp.step]))

    def leave(self, last: int) -> None:
        """This rank is no longer watched: it has finished, and is not missed by those that still work, or it has failed."""
        self.number = last - 1
        if self.store is not None:
            with suppress(RuntimeError, OSError):
                self.show(self.beat())

    def show(self, mine: Beat) -> None:
        """To the other ranks."""
        if self.store is not None:
            self.store.set(f"{PREFIX}/{mine.rank}", mine.as_json())

    def look(self, mine: Beat) -> None:
        now = time.monotonic()
        for rank, one in self.others(mine).items():
            if rank not in self.seen or self.seen[rank][0].number != one.number:
                self.seen[rank] = (one, now)
        absent = [rank for rank in range(self.world.world_size) if rank not in self.seen]
        if absent and now - self.started > self.limits.default:
            self.end(Hang(ranks=absent, message=f"ranks {absent} have not begun within {self.limits.default:.0f} s"))
        if mine.still_s > LOST_AFTER_S and (lost := self.lost(mine, now)):
            ranks = ", ".join(f"rank {rank} (process {self.seen[rank][0].process} on {self.seen[rank][0].host})" for rank in lost)
            leave_lost(f"waits for {ranks}, which failed or is gone: {mine.place}", rank=mine.rank)
        silent = {rank: now - since for rank, (_, since) in self.seen.items() if now - since > self.limits.silence and rank != mine.rank}
        hang = judge(
            {rank: self.entered(one) if rank in silent else one for rank, (one, _) in sorted(self.seen.items())},
            silent,
            world_size=self.world.world_size,
        )
        if hang is not None:
            self.end(hang)

    def lost(self, mine: Beat, now: float) -> list[int]:
        """The ranks that cannot come any more."""
        others = [(rank, one, now - since) for rank, (one, since) in sorted(self.seen.items()) if rank != mine.rank]
        return [r for r, one, quiet in others if one.number == FAILED or (one.number >= 0 and quiet > 3 * BEAT_S and not _there(one))]

    def others(self, mine: Beat) -> dict[int, Beat]:
        if self.store is None:
            return {mine.rank: mine}
        keys = [f"{PREFIX}/{rank}" for rank in range(self.world.world_size)]
        there = list(range(len(keys))) if self.store.check(keys) else [rank for rank, key in enumerate(keys) if self.store.check([key])]
        texts = self.store.multi_get([keys[rank] for rank in there])
        return {rank: Beat.of_json(text.decode()) for rank, text in zip(there, texts, strict=True)}

    def entered(self, one: Beat) -> Beat:
        """With the phase that the rank has entered since."""
        key = f"{PREFIX}/phase/{one.rank}"
        if self.store is None or not self.store.check([key]):
            return one
        phase, step = json.loads(self.store.get(key))
        return replace(one, phase=phase, step=step)

    def end(self, hang: Hang) -> None:
        """The first rank that comes here reports for all; the others wait to be ended by it."""
        if self.store is not None and self.store.add(f"{PREFIX}/told", 1) != 1:
            self.done.wait(STACKS_WITHIN_S + BEAT_S)
            leave(1)
        report_hang(HangError(hang.message), rank=hang.ranks[0], told_by=self.world.rank, stacks=self.all_stacks())
        for rank, (one, _) in self.seen.items():
            if rank not in hang.ranks:
                continue
            if rank != self.world.rank and one.host == socket.gethostname():
                with suppress(OSError):  # stopped processes do not end by anything else
                    os.kill(one.process, signal.SIGKILL)
        leave(1)

    def all_stacks(self) -> str:
        """Of all ranks, with their last collectives; of one that does not answer, the last lines that were seen."""
        found = {self.world.rank: stacks() + last_collectives()}
        if self.store is not None:
            self.store.set(f"{PREFIX}/stacks", "1")
            until = time.monotonic() + STACKS_WITHIN_S
            while len(found) < self.world.world_size and time.monotonic() < until:
                time.sleep(0.2)
                for rank in set(self.seen) - set(found):
                    if self.store.check([f"{PREFIX}/stacks/{rank}"]):
                        found[rank] = self.store.get(f"{PREFIX}/stacks/{rank}").decode("utf-8", "replace")
        for rank in set(self.seen) - set(found):
            lines = "\n".join(f"  {line}" for line in self.seen[rank][0].stack)
            found[rank] = f"MainThread as last seen, most recent call last:\n{lines}\n"
        return "".join(f"--- rank {rank} ---\n{text}" for rank, text in sorted(found.items()))


def _there(one: Beat) -> bool:
    """Whether the rank's process still is, as far as this machine can say."""
    try:
        if one.host == socket.gethostname():
            os.kill(one.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: there
        return True
    return True


def _store(world: World) -> Any:
    """A connection of its own to the store of the ranks: it waits for nothing that the rank itself asks. None with one rank."""
    if world.group is None or world.world_size == 1:
        return None
    store: Any = dist.distributed_c10d._get_default_store()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    mine = store.clone()
    mine.set_timeout(timedelta(seconds=STORE_ANSWERS_WITHIN_S))
    joined = dist.PrefixStore(f"{PREFIX}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", mine)
    joined.set_timeout(timedelta(seconds=STORE_ANSWERS_WITHIN_S))
    return joined


def _lift_group_limits(limits: HangLimits) -> None:
    """torch's time limit of collectives, which names the wrong rank, comes after ours."""
    if not dist.is_initialized():
        return
    late = timedelta(seconds=4 * limits.largest + 3600)
    for group in list(dist.distributed_c10d._world.pg_names):
        dist.distributed_c10d._set_pg_timeout(late, group)
