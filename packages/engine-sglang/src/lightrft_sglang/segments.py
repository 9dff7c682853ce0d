"""The shared memory that SGLang's processes use, so that none of it stays behind. They are ended by SIGKILL and take nothing along."""

from __future__ import annotations

import os
from collections.abc import Iterable
from multiprocessing import resource_tracker
from pathlib import Path

FOLDER = "/dev/shm"
UNTRACKED = "sglang_loads_"
"""How names of files begin that SGLang 0.5.21 makes there without telling Python's resource tracker."""


def segments_of(pids: Iterable[int]) -> set[str]:
    """Paths in /dev/shm that these processes have mapped or open. Empty for one that has ended, and where there is no /proc."""
    # By inode: a semaphore is mapped under a temporary name that is gone at once, and linked to its own.
    inodes = {inode for pid in pids for inode in (*_mapped(pid), *_open(pid))}
    try:
        return {entry.path for entry in os.scandir(FOLDER) if entry.inode() in inodes}
    except OSError:
        return set()


def everything() -> set[str]:
    """All of SGLang's segments on this machine, by their names."""
    return {str(path) for path in Path(FOLDER).glob("sgl*")}


def unused(paths: Iterable[str]) -> set[str]:
    """Those that no process has mapped or open; another job's are."""
    return set(paths) - segments_of(int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def remove(paths: Iterable[str]) -> None:
    """Unlinks what is still there; who has it mapped keeps it."""
    for path in paths:
        Path(path).unlink(missing_ok=True)


def entrust(paths: Iterable[str]) -> set[str]:
    """Has the resource tracker, which outlives us, remove those that it does not know of yet. Returns them, for `take_back`."""
    found = {path for path in paths if Path(path).name.startswith(UNTRACKED)}
    for path in found:
        resource_tracker.register(f"/{Path(path).name}", "shared_memory")
    return found


def take_back(paths: Iterable[str]) -> None:
    """They are gone, or somebody else sees to it."""
    for path in paths:
        resource_tracker.unregister(f"/{Path(path).name}", "shared_memory")


def _mapped(pid: int) -> list[int]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [int(line.split()[4]) for line in lines if f" {FOLDER}/" in line]


def _open(pid: int) -> list[int]:
    try:
        paths = [entry.path for entry in os.scandir(f"/proc/{pid}/fd") if os.readlink(entry.path).startswith(FOLDER)]
        return [os.stat(path).st_ino for path in paths]
    except OSError:  # it ends while we look
        return []
