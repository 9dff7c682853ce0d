"""The tool `python`: the model writes a program, and reads what it prints. Off unless `allow_code_execution` says so. No torch."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import ClassVar

from lightrft.rollout.environment import Step, Turn
from lightrft.rollout.tool_calls import ToolCalls
from lightrft.utils.permission import require_code_execution, sandbox_is_weak
from lightrft.utils.sandbox import ProgramOutput, run_program

FAILED, STOPPED = "failed_programs", "stopped_programs"
NOTE_CHARS = 150
"""Of `max_result_chars`, for how a program ended."""


class PythonTool(ToolCalls):
    """Gives the model `python(code)`: each call is a new process in the sandbox of the reward `code`, without files and network.

    The model is told output and errors, the middle left out beyond `max_result_chars`, and how a program ended that did not end well.
    `time_limit_s`: seconds for all programs of one turn together, by the clock; it should be less than `environment_timeout_s`. `info` also
    has `failed_programs` (an exception, or another exit code than 0) and `stopped_programs` (out of time or memory, or too much output).

    A subclass may have further `functions`, and other limits.

    Example::

        >>> import lightrft
        >>> class Calculator(lightrft.PythonTool):
        ...     time_limit_s = 3.0
        >>> [tool["function"]["name"] for tool in Calculator.tools()]
        ['python']
    """

    runs_code = True
    time_limit_s: ClassVar[float] = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.counts |= {FAILED: 0, STOPPED: 0}
        self._until: float | None = None

    def step(self, turn: Turn) -> Step | Awaitable[Step]:
        self._until = None
        return super().step(turn)

    def python(self, code: str) -> str:
        """Runs a Python program and gives what it prints, errors included. Nothing is kept from one call to the next.

        Args:
            code: the program; print what you want to see
        """
        require_code_execution()
        if self._until is None:  # the first program of this turn
            self._until = time.monotonic() + self.time_limit_s
        left = self._until - time.monotonic()
        if left <= 0:
            self.counts[STOPPED] += 1
            return f"error: not run, the {self.time_limit_s:g} s of this turn are over"
        room = max(self.max_result_chars - NOTE_CHARS, self.max_result_chars // 2)
        return self._said(run_program(code, time_limit_s=left, max_chars=room, weak=sandbox_is_weak()))

    functions = (python,)

    def _said(self, output: ProgramOutput) -> str:
        text = output.text.removesuffix("\n")
        if output.ended == "itself" and output.exit_code == 0:
            return text or "(no output)"
        self.counts[FAILED if output.ended == "itself" else STOPPED] += 1
        notes = {
            "itself": f"exit code {output.exit_code}",
            "time": f"stopped, the {self.time_limit_s:g} s of this turn are over",
            "output": "stopped, it wrote too much",
            "force": "stopped, by a signal or for its memory or processor time",
        }
        return f"{text}\nerror: {notes[output.ended]}" if text else f"error: {notes[output.ended]}"
