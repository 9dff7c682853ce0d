"""How does a program that nobody has read run so that it ends? A process of its own, with limits, in a folder that goes away.

Processor time, memory, sizes of files, numbers of files and processes are limited, the environment is empty and, where Linux lets an
ordinary user have namespaces of their own, there is no network and no other process to see. It may still read what this user may read:
this is no boundary against an attacker. For that, put a container or a virtual machine around the run.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

WALL_S = 20.0
_WORKER = Path(__file__).with_name("sandbox_worker.py")
_log = logging.getLogger(__name__)
_told = False


def passes(program: str, tests: str, *, wall_s: float = WALL_S) -> bool:
    """Whether the program and then the tests run to their end without an error. Any thread may call it."""
    word = secrets.token_hex(16)
    read, write = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="lightrft-code-", ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WORKER), str(write)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=folder, env={"TMPDIR": folder, "HOME": folder}, pass_fds=(write,), start_new_session=True,
            )  # fmt: skip
            os.close(write)
            write = -1
            try:
                asked = json.dumps({"program": program, "tests": tests, "word": word}).encode()
                process.communicate(asked, timeout=wall_s)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                pass
            finally:
                _end(process)
            os.set_blocking(read, False)
            said = _read(read)
            if b"no namespaces" in said:
                _tell()
            return word.encode() in said
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _read(read: int) -> bytes:
    try:
        return os.read(read, 4096)
    except BlockingIOError:
        return b""


def _tell() -> None:
    global _told
    if not _told:
        _told = True
        _log.warning("code reward: this system gives no namespaces to an ordinary user, so programs of the model can reach the network")
