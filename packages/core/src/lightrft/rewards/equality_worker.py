"""Whether the pairs on standard input are equal. The child process of `equality`; imports nothing of this library.

Reads one JSON pair a line; writes `ready`, then `1` or `0` for each pair, or `late` after more processor time than the argument says, until
its input ends. Dies of SIGPROF after twice that time: the default action of the signal, because a handler, as `late` has one, waits for
a big-number operation to end.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 4 << 30
START_LIMIT_S = 120.0


def main(cpu_limit_s: float) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    signal.setitimer(signal.ITIMER_PROF, START_LIMIT_S)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    import math_verify

    _limit_memory()
    logging.disable()  # it warns that its own time-outs are off, which is the point
    signal.signal(signal.SIGVTALRM, _too_long)
    print("ready", file=answers, flush=True)
    signal.setitimer(signal.ITIMER_PROF, 0)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, 2 * cpu_limit_s)
        reference, found = json.loads(line)
        answer = _answer(math_verify, reference, found, cpu_limit_s)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, file=answers, flush=True)


class _TooLongError(BaseException):
    """No Exception, which libraries catch."""


def _too_long(*_: object) -> None:
    raise _TooLongError


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _answer(math_verify: Any, reference: str, found: str, seconds: float) -> str:
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        # Dollar signs make it read the whole text as one formula.
        parsed = [math_verify.parse(f"${text}$", parsing_timeout=None) for text in (reference, found)]
        return "1" if math_verify.verify(*parsed, timeout_seconds=None) else "0"
    except _TooLongError:
        return "late"
    except Exception:  # what cannot be parsed or compared (memory and recursion included) is not the right answer
        return "0"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
