"""The reward `code`: the program in a completion against the tests of its row. Off unless `allow_code_execution` says so."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lightrft.rewards.exact_match import required_answers
from lightrft.types import Sample
from lightrft.utils.permission import require_code_execution
from lightrft.utils.sandbox import passes

MAX_RUNNING = 4
MAX_CHARS = 100_000
_FENCE = re.compile(r"[ \t]*```[ \t]*([\w+-]*)(.*)")


def code_reward(samples: Sequence[Sample], *, weak: bool = False) -> list[float]:
    """1.0 where the Python program of the completion, and then the tests in `answer` (Python with asserts), run to their end; else 0.0.

    The program is the last fenced block (marked as Python or not at all), else the whole completion. Program and tests are two processes,
    each in a sandbox of its own, a few pairs at a time; see docs/rewards.md for what tests may use. `weak`: without namespaces, where the
    system gives none (the setting `code_sandbox`).

    Raises:
        CodePermissionError: the run that asks does not allow it.
        ValueError: a sample without tests.
        SandboxError: this system gives no whole sandbox, and `weak` is not set.
    """
    require_code_execution()
    tests = ["\n".join(required_answers(sample, index)) for index, sample in enumerate(samples)]
    if not tests:
        return []
    with ThreadPoolExecutor(min(MAX_RUNNING, os.cpu_count() or 1, len(samples)), thread_name_prefix="code") as pool:
        programs = [program_of(sample.completion) for sample in samples]
        return [float(found) for found in pool.map(lambda program, test: _passes(program, test, weak=weak), programs, tests)]


def program_of(completion: str) -> str:
    """The last fenced block of Python, or the text without any."""
    found, language, body = completion, "", [""]
    inside = False
    for line in completion[-MAX_CHARS:].split("\n"):  # line by line: one pattern over the whole took minutes for many fences left open
        fence = _FENCE.fullmatch(line)
        if not inside:
            inside, language, body = fence is not None, fence[1].lower() if fence else "", []
        elif fence and not fence[1] and not fence[2].strip(" \t"):
            inside, found = False, "".join(body) if language in ("", "python", "py", "python3") else found
        else:
            body.append(f"{line}\n")
    return found


def _passes(program: str, tests: str, *, weak: bool) -> bool:
    return 0 < len(program) <= MAX_CHARS and bool(program.strip()) and passes(program, tests, weak=weak)
