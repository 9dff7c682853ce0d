"""What a program prints: one confined process, whose output is kept to a length."""

from __future__ import annotations

import os
import select
import subprocess
import time
from dataclasses import dataclass
from typing import Literal

from lightrft.utils.sandbox.confined import Confined

MAX_WRITTEN = 1 << 20
"""Bytes, after which a program that goes on writing is ended."""

OVER_LIMIT_EXIT, SIGNALLED_EXIT = 98, 192
"""Of `enter`: a limit of memory or time; and from here on, 256 less the number of a signal."""

Ended = Literal["itself", "time", "output", "force"]


@dataclass(frozen=True, kw_only=True)
class ProgramOutput:
    """`text`: the output, its middle left out where it is long. `ended`: by itself, because of its time or its output, or by
    force (a signal, or the sandbox's limits of memory and processor time).

    `exit_code`: 0 for a program that ran to its end, 1 for an exception, which `text` ends with.
    """

    text: str
    ended: Ended
    exit_code: int


def run_program(program: str, *, time_limit_s: float, max_chars: int, weak: bool = False) -> ProgramOutput:
    """Runs a Python program in a sandbox, alone; output and errors are one text of `max_chars` characters at most. Any thread may call it.

    `time_limit_s`: seconds by the clock, its start included. `weak`: without namespaces, where the system gives none.

    Raises:
        SandboxError: the system does not give what is needed; it says what, and which setting goes on without.
    """
    until = time.monotonic() + time_limit_s
    given = os.memfd_create("lightrft-program")
    try:
        with open(given, "wb", closefd=False) as file:
            file.write(program.encode("utf-8", "surrogatepass"))
        os.lseek(given, 0, os.SEEK_SET)
        confined = Confined("output_side", descriptors=[0, 1], weak=weak, stdin=given)
    finally:
        os.close(given)
    with confined:
        written, ended = _read(confined, until)
        confined.end()
        confined.check()
        code = confined.process.returncode
        if ended == "itself" and (code == OVER_LIMIT_EXIT or code >= SIGNALLED_EXIT):
            ended = "force"
        return ProgramOutput(text=_shortened(written, max_chars), ended=ended, exit_code=code)


def _read(confined: Confined, until: float) -> tuple[bytes, Ended]:
    """All that is written, and what ended it."""
    pipe = confined.process.stdout
    assert pipe is not None
    ready = select.poll()  # select() itself refuses the descriptors of a process that has many
    ready.register(pipe, select.POLLIN)
    parts: list[bytes] = []
    size = 0
    while (left := until - time.monotonic()) > 0 and ready.poll(left * 1000):
        part = os.read(pipe.fileno(), 1 << 16)
        if not part:
            return b"".join(parts), "itself" if _over(confined, until) else "time"
        parts.append(part)
        size += len(part)
        if size > MAX_WRITTEN:
            return b"".join(parts), "output"
    return b"".join(parts), "time"


def _over(confined: Confined, until: float) -> bool:
    """Whether the process ends in time: it may have closed its output before."""
    try:
        confined.process.wait(max(until - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        return False
    return True


def _shortened(written: bytes, max_chars: int) -> str:
    """Beginning and end: an error stands at the end."""
    text = written.decode("utf-8", "replace")
    if len(text) <= max_chars:
        return text
    note = f"\n... ({len(text) - max_chars} characters left out) ...\n"
    room = max(max_chars - len(note), 0)
    return text[: room - room // 2] + note[:max_chars] + text[len(text) - room // 2 :]
