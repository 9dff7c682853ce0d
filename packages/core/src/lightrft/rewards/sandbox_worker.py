"""Does a program pass its tests? The child process of `sandbox`; imports nothing of this library and sets its own limits first.

Reads program, tests and a word from standard input; writes the word to the file descriptor of its argument once both ran to their end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys

CPU_S = 10
MEMORY_BYTES = 1 << 30
FILE_BYTES = 16 << 20
OPEN_FILES = 64
PROCESSES = 16
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC = 0x00020000, 0x10000000, 0x20000000, 0x40000000, 0x08000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def main(answer: int) -> None:
    asked = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    apart = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC) == 0
    if not apart:
        os.write(answer, b"no namespaces\n")
    else:
        # The first process of a namespace of processes: when it ends, so does all that it has started.
        child = os.fork()
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) and 1)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _limit()
    word = asked.pop("word").encode()
    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(asked["program"], "program.py", "exec"), namespace)  # this is what it is for
    exec(compile(asked["tests"], "tests.py", "exec"), namespace)
    os.write(answer, word)
    os._exit(0)


def _limit() -> None:
    limits = [
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ]
    for what, number in limits:
        _, hard = resource.getrlimit(what)
        bound = number if hard == resource.RLIM_INFINITY else min(number, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (bound, bound))


if __name__ == "__main__":
    main(int(sys.argv[1]))
