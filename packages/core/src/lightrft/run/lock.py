"""One run to a folder: a lock that says who holds it. It goes with its process, whatever ends that; a later run takes over what is left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from lightrft.errors import RunFolderError

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that know no locks; there the owner's words in the file have to do."""
_held: dict[Path, int] = {}
"""Descriptors by folder: a lock belongs to the process, so a second run of one process (a notebook) finds it held by itself."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that runs in a folder."""

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_here_and_gone(self) -> bool:
        """Whether it was a process of this machine that has ended."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another user's
            return False
        return False


def hold(folder: Path) -> Owner | None:
    """Takes the folder for this process, or returns at once where it has it. The owner that was there before and is gone, if one was.

    Raises:
        RunFolderError: another process runs there, it cannot be written, or what is called `.lock` there is no file.
    """
    folder = folder.resolve()
    if folder in _held:
        return None
    try:
        return _hold(folder)
    except OSError as error:
        raise RunFolderError(f"{str(folder)!r} cannot be written: {error.strerror or error}; give another output_dir or log_dir") from error


def _hold(folder: Path) -> Owner | None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    while True:
        if problem := _no_file(path):
            raise RunFolderError(problem)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        before = _read(path)
        if not _locked(descriptor, before):
            os.close(descriptor)
            raise RunFolderError(_in_use(folder, before))
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its owner took it away in between
    me = Owner(host=socket.gethostname(), pid=os.getpid(), since=datetime.now().astimezone().isoformat(timespec="seconds"))
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(me)).encode(), 0)
    except OSError:
        path.unlink()
        os.close(descriptor)
        raise
    _held[folder] = descriptor
    return before


def release(folder: Path) -> None:
    """Gives the folder back, where this process has it."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        os.close(descriptor)


def in_use(folder: Path) -> str:
    """Who runs there, in a sentence with what to do; empty where nobody does, or this process itself. Changes nothing."""
    path = folder / LOCK_FILE
    if folder.resolve() in _held or not os.path.lexists(path):
        return ""
    if problem := _no_file(path):
        return problem
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""  # `hold` says what is wrong with it
    try:
        before = _read(path)
        return "" if _locked(descriptor, before) else _in_use(folder, before)
    finally:
        os.close(descriptor)


def owner_of(folder: Path) -> Owner | None:
    """Who holds the folder, or held it when it was killed; None where nobody does. Reads only: no lock is taken."""
    return _read(folder / LOCK_FILE)


def _no_file(path: Path) -> str:
    """A link may be changed by others, a folder cannot be locked so, and a pipe would be waited for."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        return f"{str(path)!r} is no file that a run left (a link, a folder, a pipe or a device); take it away"
    return ""


def _locked(descriptor: int, before: Owner | None) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return before is None or before.is_here_and_gone
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    return False


def _read(path: Path) -> Owner | None:
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    is_pid = isinstance(owner.pid, int) and 0 < owner.pid < 2**31
    return owner if is_pid and isinstance(owner.host, str) and isinstance(owner.since, str) else None


def _in_use(folder: Path, owner: Owner | None) -> str:
    who = str(owner) if owner is not None else "another process"
    if owner is not None and owner.is_here_and_gone:
        return (
            f"{str(folder)!r} is in use: {who}, has ended, but a process that it started has not; end that (`fuser {folder / LOCK_FILE}`)"
        )
    return f"{str(folder)!r} is in use: {who}, runs there; wait for it, end it, or choose another output_dir"


def _forget() -> None:
    """In a forked process: the lock is the parent's, and must not outlive it here."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
