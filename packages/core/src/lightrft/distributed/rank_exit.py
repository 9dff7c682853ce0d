"""The orderly end of a rank's process, without the end of its interpreter."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from lightrft.distributed.failure import leave


def exit_rank(code: int) -> NoReturn:
    """Ends this process with `code`, after all that Python does at its end but the destruction of modules and objects.

    Threads of gloo's may still run when the interpreter is taken down under them; the process then now and then ends with SIGABRT
    ("terminate called without an active exception", pytorch#179291), and a job that is done counts as failed. So this waits for threads
    that are no daemons, calls what `atexit` holds (child processes, loggers and temporary folders end there), writes out what is
    buffered, and leaves. For a process that is ours from its start: a rank of the launcher's, or `lightrft` under torchrun. Not collective.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter's own end begins; no public name has it
    atexit._run_exitfuncs()
    _write_out_files()
    with suppress(OSError, AttributeError):  # what C code has printed; not every system has it
        ctypes.CDLL(None).fflush(None)
    leave(code)


def _write_out_files() -> None:
    """A file that code of the user's has left open is written out, as its destructor would have done."""
    for kinds in ((io.TextIOWrapper,), (io.BufferedWriter, io.BufferedRandom)):  # text goes to the buffer below it first
        for file in [one for one in gc.get_objects() if issubclass(type(one), kinds)]:
            if file not in (sys.stdout, sys.stderr) and not file.closed:  # these two: `leave`, which hides no error
                with suppress(OSError):
                    file.flush()
