"""Whether a program passes tests: two confined processes, the program's and the checker's, which share nothing but a pair of pipes."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from functools import cache

from lightrft.errors import SandboxError
from lightrft.utils.sandbox.confined import Confined, sandbox_problem

WALL_S = 20.0


def passes(program: str, tests: str, *, wall_s: float = WALL_S, weak: bool = False) -> bool:
    """Whether the program, and then the tests, which must ask it for something, run to their end. Any thread may call it.

    `weak`: without namespaces, where the system gives none.

    Raises:
        SandboxError: the system does not give what is needed; it says what, and which setting goes on without.
    """
    with ExitStack() as stack:
        (ask_read, ask_write), (reply_read, reply_write) = os.pipe(), os.pipe()
        held = [ask_read, ask_write, reply_read, reply_write]
        stack.callback(_close, held)
        running = stack.enter_context(Confined("wire", "program_side", descriptors=[ask_read, reply_write], weak=weak))
        checker = stack.enter_context(Confined("wire", "checker_side", descriptors=[0, 1, reply_read, ask_write], weak=weak))
        _close(held)
        verdict = checker.talk(json.dumps({"program": program, "tests": tests}).encode(), wall_s)
        for one in (running, checker):
            one.end()
        for one in (running, checker):
            one.check()
        return verdict == b"passed"


@cache
def lacking() -> str:
    """What this system does not give for a whole sandbox, and what to do then; empty where it gives all. Asked once, in a second."""
    try:
        passed = passes("x = 1", "assert x == 1")
    except SandboxError as error:
        return str(error)
    return "" if passed else sandbox_problem("two processes that talk to each other within the time")


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
