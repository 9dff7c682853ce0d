"""What ends a rank whose call never returns? A thread beside it, which says what was waited for and ends the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightrft.distributed.failure import leave_hung
from lightrft.errors import LightRFTError


@contextmanager
def ends_after(seconds: float, *, error: LightRFTError, where: str, rank: int) -> Iterator[None]:
    """The process ends, with `error` and all stacks reported, when the block takes longer; 0 is no limit.

    Nothing can be raised into a call that hangs in C++, so nothing is. A call that also keeps Python's global lock stops this thread, too;
    then only the other ranks' collectives time out.
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
