"""Are the pairs on standard input equal? The child process of `equality`; imports nothing of this library.

Reads one JSON pair a line; writes `ready`, then `1` or `0` for each pair. Dies of SIGPROF when one pair takes more processor time
than the argument says: the default action of the signal, because a handler would wait for a big-number operation to end.
"""

from __future__ import annotations

import json
import logging
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
    import math_verify

    _limit_memory()
    logging.disable()  # it warns that its own time-outs are off, which is the point
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
        reference, found = json.loads(line)
        print(int(_equal(math_verify, reference, found)), flush=True)


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _equal(math_verify: Any, reference: str, found: str) -> bool:
    try:
        # Dollar signs make it read the whole text as one formula.
        parsed = [math_verify.parse(f"${text}$", parsing_timeout=None) for text in (reference, found)]
        return bool(math_verify.verify(*parsed, timeout_seconds=None))
    except Exception:  # what cannot be parsed or compared (memory and recursion included) is not the right answer
        return False


if __name__ == "__main__":
    main(float(sys.argv[1]))
