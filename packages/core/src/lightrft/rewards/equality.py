"""Whether two mathematical expressions are equal, whatever a model wrote: math-verify in one child process that cannot hang us.

A model under training writes things like `9^{9^{9^9}}`, on which sympy computes for ever. math-verify's own time-out is a signal,
which works in the main thread only and does not interrupt a big-number operation. A child with a limit on its processor time works
everywhere: it lives as long as this process, an expression that kills it is unequal, and the rest goes on in a new child.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from lightrft.errors import RewardError

Pair = tuple[str, str]
"""Reference and found expression."""

MAX_FAILURES = 10
"""Comparisons without a verdict in one call; then what is left counts as unequal, so that a rollout full of them ends too."""
START_S = 300.0
_WORKER = Path(__file__).with_name("equality_worker.py")
_log = logging.getLogger(__name__)


def require_math_verify() -> None:
    """Raises RewardError with the command that installs math-verify where it is missing."""
    if find_spec("math_verify") is None:
        raise RewardError("the math reward needs math-verify, which is not installed: pip install 'lightrft[math]'")


def equal_expressions(pairs: Iterable[Pair], *, cpu_limit_s: float = 2.0) -> dict[Pair, bool]:
    """Whether each pair is equal; each different pair is computed once. Starts no process when there is none. Any thread may call it.

    Raises:
        RewardError: math-verify does not start.
    """
    verdicts: dict[Pair, bool] = {}
    failures = 0
    for pair in dict.fromkeys(pairs):
        if failures >= MAX_FAILURES:
            verdicts[pair] = False
            continue
        verdict, ending = _CHILDREN.ask(pair, cpu_limit_s)
        verdicts[pair] = bool(verdict)
        if verdict is None:
            failures += 1
            _log.warning("math reward: comparing %r with %r %s; it counts as unequal", pair[1], pair[0], ending)
            if failures == MAX_FAILURES:
                _log.warning("math reward: %d comparisons gave no verdict; the others of this call count as unequal", failures)
    return verdicts


class _Child:
    """One running worker. It ends when its standard input closes, so it never outlives this process."""

    def __init__(self, cpu_limit_s: float) -> None:
        self.cpu_limit_s = cpu_limit_s
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the child
        # -P: the child must not take `math` and `format` for the files beside its own.
        command = [sys.executable, "-P", str(_WORKER), str(cpu_limit_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0)
        self.unread = b""
        if self._line(START_S) != "ready":
            self.process.kill()
            self.process.wait()
            self.errors.seek(0)
            lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
            self.end()
            reason = (lines or [f"exit code {self.process.returncode}"])[-1]
            raise RewardError(f"math-verify does not start in {sys.executable}: {reason}; repair it with pip install -U 'lightrft[math]'")

    def ask(self, pair: Pair) -> bool | None:
        """The verdict; None where there was no time for one, or the child died of it or did not answer (then it is ended)."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(pair).encode() + b"\n")
        # Its own limit is on processor time; a machine on which that takes so long is not at work.
        answer = self._line(30 * self.cpu_limit_s + 60)
        if answer in ("0", "1"):
            return answer == "1"
        if answer != "late":
            self.end()
        return None

    def _line(self, seconds: float) -> str:
        """The next line of the child; empty where it ended or the time is over."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.unread:
                if not selector.select(seconds) or not (more := os.read(self.process.stdout.fileno(), 65536)):
                    return ""
                self.unread += more
        line, _, self.unread = self.unread.partition(b"\n")
        return line.decode("utf-8", "replace")

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        if self.process.poll() is None:
            try:
                self.process.wait(1)  # a child that dies of its limit is to be seen dying of it
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.errors.close()


class _Children:
    """At most one child at a time; started when it is first needed, and again after one died."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: _Child | None = None

    def ask(self, pair: Pair, cpu_limit_s: float) -> tuple[bool | None, str]:
        with self.lock:
            if self.child is None or self.child.cpu_limit_s != cpu_limit_s or self.child.process.poll() is not None:
                if self.child is not None:
                    self.child.end()
                self.child = None  # a start that fails leaves none
                self.child = _Child(cpu_limit_s)
            child = self.child
            verdict = child.ask(pair)
            if verdict is not None:
                return verdict, ""
            code = child.process.returncode
            if code is not None:
                self.child = None
            took_too_long = code in (None, -signal.SIGPROF, -signal.SIGKILL)
            return None, f"took more than {cpu_limit_s:g} s" if took_too_long else f"ended its process (exit code {code})"


_CHILDREN = _Children()


def _forget() -> None:
    """In a forked process: the parent's child answers to the parent alone."""
    global _CHILDREN
    _CHILDREN = _Children()


os.register_at_fork(after_in_child=_forget)
