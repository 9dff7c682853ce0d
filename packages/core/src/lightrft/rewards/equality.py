"""Are two mathematical expressions equal, whatever a model wrote? math-verify in a child process that cannot hang us.

A model under training writes things like `9^{9^{9^9}}`, on which sympy computes for ever. math-verify's own time-out is a signal,
which works in the main thread only and does not interrupt a big-number operation. A child with a limit on its processor time works
everywhere: an expression that kills it is unequal, and the rest goes on in a new child.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from lightrft.errors import RewardError

Pair = tuple[str, str]
"""Reference and found expression."""

_WORKER = Path(__file__).with_name("equality_worker.py")
_log = logging.getLogger(__name__)


def require_math_verify() -> None:
    """Raises RewardError with the command that installs math-verify where it is missing."""
    if find_spec("math_verify") is None:
        raise RewardError("the math reward needs math-verify, which is not installed: pip install 'lightrft[math]'")


def equal_expressions(pairs: Iterable[Pair], *, cpu_limit_s: float = 2.0) -> dict[Pair, bool]:
    """Whether each pair is equal; each different pair is computed once. Starts no process when there is none.

    Raises:
        RewardError: math-verify does not start.
    """
    waiting = list(dict.fromkeys(pairs))
    verdicts: dict[Pair, bool] = {}
    while len(verdicts) < len(waiting):
        rest = waiting[len(verdicts) :]
        answered, ending = _run_child(rest, cpu_limit_s)
        verdicts.update(zip(rest, answered, strict=False))
        if len(answered) < len(rest):
            lost = rest[len(answered)]
            verdicts[lost] = False
            _log.warning("math reward: comparing %r with %r %s; it counts as unequal", lost[1], lost[0], ending)
    return verdicts


def _run_child(pairs: list[Pair], cpu_limit_s: float) -> tuple[list[bool], str]:
    """The answers that one child gave before it ended, and how it ended."""
    # -P: the child must not take `math` and `format` for the files beside its own.
    command = [sys.executable, "-P", str(_WORKER), str(cpu_limit_s)]
    question = "".join(json.dumps(pair) + "\n" for pair in pairs)
    child = subprocess.run(command, input=question, capture_output=True, text=True, encoding="utf-8", check=False)
    hello, *answers = child.stdout.splitlines() or [""]
    if hello != "ready":
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise RewardError(f"math-verify does not start in {sys.executable}: {reason}; repair it with pip install -U 'lightrft[math]'")
    took_too_long = child.returncode == -signal.SIGPROF
    ending = f"took more than {cpu_limit_s:g} s" if took_too_long else f"ended its process (exit code {child.returncode})"
    return [answer == "1" for answer in answers], ending
