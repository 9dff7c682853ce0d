"""Whether a program passes tests: two confined processes, the program's and the checker's, which share nothing but a pair of pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from lightrft.errors import RewardError

WALL_S = 20.0
REFUSED_EXIT = 97
"""Of `enter`."""

_HERE = Path(__file__).parent


def passes(program: str, tests: str, *, wall_s: float = WALL_S, weak: bool = False) -> bool:
    """Whether the program, and then the tests, which must ask it for something, run to their end. Any thread may call it.

    `weak`: without namespaces, where the system gives none.

    Raises:
        RewardError: the system does not give what is needed; it says what, and which setting goes on without.
    """
    with ExitStack() as stack:
        (ask_read, ask_write), (reply_read, reply_write) = os.pipe(), os.pipe()
        held = [ask_read, ask_write, reply_read, reply_write]
        stack.callback(_close, held)
        running = stack.enter_context(_Confined("program_side", [ask_read, reply_write], weak=weak))
        checker = stack.enter_context(_Confined("checker_side", [0, 1, reply_read, ask_write], weak=weak))
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
    except RewardError as error:
        return str(error)
    return "" if passed else _problem("two processes that talk to each other within the time")


def _problem(what: str) -> str:
    advice = "run where user namespaces are allowed, or set --code_sandbox weak to go on without"
    return f"the reward code needs what this system does not give: {what}; {advice}"


class _Confined:
    """One process under `enter`; ended, with all below it, when the block ends."""

    def __init__(self, part: str, descriptors: list[int], *, weak: bool) -> None:
        python = os.path.realpath(sys.executable)  # behind any virtual environment
        plan = {"python": python, "source": _source("wire", part), "descriptors": descriptors, "weak": weak}
        self._folder = tempfile.TemporaryDirectory(prefix="lightrft-code-", ignore_cleanup_errors=True) if weak else None
        if self._folder and os.geteuid() == 0:
            Path(self._folder.name).chmod(0o777)  # the program is another user
        talks = 0 in descriptors
        self.process = subprocess.Popen(
            [python, "-I", "-S", str(_HERE / "enter.py"), json.dumps(plan)],
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL, stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd=self._folder.name if self._folder else "/", env={}, start_new_session=True,
            pass_fds=[one for one in descriptors if one > 2],
        )  # fmt: skip

    def __enter__(self) -> _Confined:
        return self

    def __exit__(self, *about: object) -> None:
        self.end()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if self._folder:
            self._folder.cleanup()

    def talk(self, text: bytes, wall_s: float) -> bytes:
        """What it says until it ends, or the time is over."""
        with suppress(subprocess.TimeoutExpired, BrokenPipeError):
            said, self.words = self.process.communicate(text, timeout=wall_s)
            return bytes(said)
        return b""

    words = b""

    def end(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check(self) -> None:
        """Raises RewardError where the system did not give what is needed."""
        if self.process.stderr is not None and not self.process.stderr.closed:
            self.words = self.process.stderr.read()
        if self.process.returncode == REFUSED_EXIT:
            what = " ".join(self.words.decode("utf-8", "replace").split()) or "processes of its own"
            raise RewardError(_problem(what))


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


@cache
def _source(*names: str) -> str:
    """The text of several files as that of one."""
    first = "from __future__ import annotations\n"
    return first + "\n".join((_HERE / f"{name}.py").read_text(encoding="utf-8").replace(first, "") for name in names)
