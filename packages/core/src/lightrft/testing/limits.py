"""Time limits for engines in tests, and the processes that they leave. A time limit in words, and the processes below this one."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker")
"""Processes that Python and torch start once and keep for as long as this one lives."""


@contextmanager
def within(seconds: float, what: str, *, then: Callable[[str], None] = lambda words: None) -> Iterator[None]:
    """Fails the test where the block is still at work after so many seconds, in words that say in which lines of Python; `then` hears them.

    By a signal, so in the main thread only, and only once Python gets its turn: a call that never leaves C is not ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        where = traceback.extract_stack(frame)[-3:]
        stack = " > ".join(f"{Path(entry.filename).name}:{entry.lineno} in {entry.name}" for entry in where)
        words = f"{what} hangs: it did not come back within {seconds:g} s; it is in {stack}"
        then(words)
        pytest.fail(words, pytrace=False)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sentence(error: BaseException) -> str:
    """What was raised, in one line, and the last place of it in the plugin's own code; where it has none on the way, the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not {"lightrft", "torch", "site-packages"} & set(Path(frame.filename).parts)]
    place = (own or list(frames))[-1]
    text = " ".join(str(error).split())
    return f"{place.name} raised {type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"


def descendants() -> dict[int, str]:
    """The processes below this one that run, with their command lines. Empty where there is no /proc."""
    parents, names = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:  # it has ended meanwhile
            continue
        if after_name[0] != "Z":
            parents[int(folder.name)] = int(after_name[1])
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: names[pid] for pid in below - {os.getpid()} if not any(helper in names[pid] for helper in HELPERS)}


def left_over(before: dict[int, str], *, within_s: float) -> dict[int, str]:
    """Those that were not there before and are still there after so many seconds."""
    deadline = time.monotonic() + within_s
    while (left := {pid: name for pid, name in descendants().items() if pid not in before}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
