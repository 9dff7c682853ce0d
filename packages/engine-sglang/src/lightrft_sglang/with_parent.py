"""Ends a child with its parent, whenever that is. The kernel is asked before the child's own program begins (Linux)."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, spawn
from pathlib import Path

PR_SET_PDEATHSIG = 1


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """Every process that `multiprocessing` spawns in here gets SIGKILL when the thread that spawned it ends, by SIGKILL too.

    SGLang asks for that as well, but only once a child has imported it, some ten seconds later: a trainer that was killed before left
    its children behind. Not so the resource tracker, which cleans up after those that were killed.
    """
    if sys.platform != "linux":
        yield
        return
    resource_tracker.ensure_running()
    before = os.fsdecode(spawn.get_executable())
    with tempfile.TemporaryDirectory(prefix="lightrft-spawn-") as folder:
        script = Path(folder) / "python"
        words = [sys.executable, "-I", "-S", __file__, str(os.getpid()), before]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        script.chmod(0o700)
        multiprocessing.set_executable(str(script))
        try:
            yield
        finally:
            multiprocessing.set_executable(before)


def main() -> None:
    """In the new process, as `with_parent.py PARENT PROGRAM ARGUMENTS`: becomes that program."""
    parent, program, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() == int(parent):  # else it has ended in the meantime
        os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
