"""One confined process: `enter` prepares it, and what the system refuses is told as one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from lightrft.errors import SandboxError

REFUSED_EXIT = 97
"""Of `enter`; it says why on standard error, which the program does not have."""

LEAVE_S = 5.0

_HERE = Path(__file__).parent


def sandbox_problem(what: str) -> str:
    """What is missing for a whole sandbox, and what to do."""
    advice = "run where user namespaces are allowed, or set --code_sandbox weak to go on without"
    return f"programs of the model need what this system does not give: {what}; {advice}"


class Confined:
    """One process under `enter`; ended, with all below it, when the block ends.

    `parts`: files of this folder that are its source, one after the other; `descriptors`: those that become its 0, 1, 3 and 4, and `stdin`
    is what its 0 is, where it is one of them.
    """

    def __init__(self, *parts: str, descriptors: list[int], weak: bool, stdin: int = subprocess.PIPE) -> None:
        python = os.path.realpath(sys.executable)  # behind any virtual environment
        plan = {"python": python, "source": _source(*parts), "descriptors": descriptors, "weak": weak}
        self._folder = tempfile.TemporaryDirectory(prefix="lightrft-code-", ignore_cleanup_errors=True) if weak else None
        if self._folder and os.geteuid() == 0:
            Path(self._folder.name).chmod(0o777)  # the program is another user
        talks = 0 in descriptors
        self.process = subprocess.Popen(
            [python, "-I", "-S", "-B", str(_HERE / "enter.py"), json.dumps(plan)],
            stdin=stdin if talks else subprocess.DEVNULL, stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd=self._folder.name if self._folder else "/", env={}, start_new_session=True,
            pass_fds=[one for one in descriptors if one > 2],
        )  # fmt: skip

    def __enter__(self) -> Confined:
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
        """Kills it and all below it; without a namespace of processes, `enter` itself has to find them."""
        if self._folder and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(LEAVE_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check(self) -> None:
        """Raises SandboxError where the system did not give what is needed. A program may exit with any number; the words are not its."""
        if self.process.stderr is not None and not self.process.stderr.closed:
            self.words = self.process.stderr.read()
        if self.process.returncode == REFUSED_EXIT and self.words:
            raise SandboxError(sandbox_problem(" ".join(self.words.decode("utf-8", "replace").split())))


@cache
def _source(*names: str) -> str:
    """The text of several files as that of one."""
    first = "from __future__ import annotations\n"
    return first + "\n".join((_HERE / f"{name}.py").read_text(encoding="utf-8").replace(first, "") for name in names)
