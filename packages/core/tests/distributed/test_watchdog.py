"""A block that takes too long ends its process, with words; any other goes on as if nothing watched it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from lightrft.config.hang_limits import HangLimits
from lightrft.distributed import watchdog
from lightrft.distributed.heartbeat import FAILED, LEFT, Beat
from lightrft.distributed.watchdog import PREFIX, _Watch, ends_after, watching
from lightrft.distributed.world import World
from lightrft.errors import EngineError
from lightrft.testing.spmd import SpmdError, run_spmd


def watchers() -> int:
    return sum(thread.name == "lightrft-watchdog" for thread in threading.enumerate())


def test_a_block_in_time_goes_on_and_leaves_no_thread() -> None:
    with ends_after(1e300, error=EngineError("late"), where="here", rank=0):
        assert watchers() == 1
    assert watchers() == 0


def test_zero_is_no_limit_and_no_thread() -> None:
    with ends_after(0.0, error=EngineError("late"), where="here", rank=0):
        assert watchers() == 0


def test_an_error_in_the_block_passes() -> None:
    with pytest.raises(ZeroDivisionError), ends_after(600.0, error=EngineError("late"), where="here", rank=0):
        raise ZeroDivisionError
    assert watchers() == 0


def wait_for_ever() -> None:
    other = threading.Thread(target=threading.Event().wait, name="idle-helper", daemon=True)
    other.start()
    with ends_after(0.5, error=EngineError("it was late"), where="waiting", rank=4):
        time.sleep(1000)


def test_a_block_that_hangs_ends_the_process_with_all_stacks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpmdError, match="rank 0 ended with exit code 70 and no traceback"):
        run_spmd(wait_for_ever, 1, timeout_s=60)
    lines = capsys.readouterr().out.splitlines()
    assert "[rank 4] rank 4 failed in waiting:" in lines
    assert lines[-1] == "[rank 4] EngineError: it was late (docs: troubleshooting#the-engine-fails)"
    heads = [line for line in lines if line.endswith(", most recent call last:")]
    assert heads[-1] == "[rank 4] MainThread, most recent call last:"
    assert "[rank 4] idle-helper, most recent call last:" in heads
    assert any("in wait_for_ever" in line for line in lines) and any("time.sleep(1000)" in line for line in lines)


class Store:
    """The store of the ranks, in this process."""

    def __init__(self, *beats: Beat) -> None:
        self.values = {f"{PREFIX}/{one.rank}": one.as_json().encode() for one in beats}

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.values[key] for key in keys]

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()


WAITS = Beat(
    rank=0, number=9, phase="update", step=3, calls=7, collective="", where="f (a.py:1)", stack=[], still_s=11, limit_s=30,
    host=socket.gethostname(), process=os.getpid(),
)  # fmt: skip


def looks(monkeypatch: pytest.MonkeyPatch, *beats: Beat, quiet_s: float, still_s: float = 11) -> list[str]:
    """What rank 0 ends with where the other ranks' last heartbeats are these, and so old."""
    said: list[str] = []
    monkeypatch.setattr(watchdog, "leave_lost", lambda message, *, rank: said.append(f"rank {rank} {message}"))
    world = World(rank=0, world_size=1 + len(beats), local_rank=0, device=torch.device("cpu"), group=None)
    watch = _Watch(world, HangLimits(default=1800, silence=60))
    others = [replace(one, rank=rank) for rank, one in enumerate(beats, start=1)]
    mine = replace(WAITS, still_s=still_s)
    watch.store = Store(mine, *others)
    watch.seen = {one.rank: (one, time.monotonic() - quiet_s) for one in others}
    watch.look(mine)
    return said


def test_a_rank_that_waits_for_one_that_failed_or_is_gone_ends_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    gone = replace(WAITS, process=done.pid)
    told = f"rank 0 waits for rank 2 (process {done.pid} on {socket.gethostname()}), which failed or is gone: {WAITS.place}"
    assert looks(monkeypatch, WAITS, gone, quiet_s=4) == [told]
    assert looks(monkeypatch, WAITS, replace(gone, number=FAILED), quiet_s=0) == [told]
    assert looks(monkeypatch, WAITS, gone, quiet_s=2) == [], "it may only now have begun to wait"
    assert looks(monkeypatch, WAITS, gone, quiet_s=4, still_s=9) == [], "a collective of gloo raises by itself"
    assert looks(monkeypatch, WAITS, replace(gone, number=LEFT), quiet_s=4) == [], "it has finished"
    assert looks(monkeypatch, WAITS, replace(gone, host="elsewhere"), quiet_s=4) == [], "nobody can say"
    assert looks(monkeypatch, WAITS, WAITS, quiet_s=50) == [], "it is there: stopped, perhaps"


def test_an_error_and_an_end_are_told_apart_by_the_last_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    monkeypatch.setattr(watchdog, "_store", lambda world: store)
    monkeypatch.setattr(watchdog, "_lift_group_limits", lambda limits: None)
    world = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)
    with watching(world, HangLimits(default=1800, silence=60)):
        pass
    assert json.loads(store.values[f"{PREFIX}/0"])["number"] == LEFT
    with pytest.raises(ZeroDivisionError), watching(world, HangLimits(default=1800, silence=60)):
        raise ZeroDivisionError
    assert json.loads(store.values[f"{PREFIX}/0"])["number"] == FAILED
