"""What takes a process's sight and rights away, by Linux: mounts, user, limits, system calls. Used by `enter`, before the program starts.

Standard library only: it runs in a small process of its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

CPU_S = 10
TREE_BYTES = 1 << 30
FILE_BYTES, FOLDER_BYTES, FOLDER_FILES = 16 << 20, 32 << 20, 1000
OPEN_FILES, PROCESSES = 64, 16
INSIDE_ID = 1000
WORK = "/work"

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PR_SET_CHILD_SUBREAPER = 36
EPERM, ENOSYS = 1, 38

# (audit architecture, clone, clone3, socket, pivot_root, mount_setattr, and the system calls that are refused)
# memfd_create, memfd_secret, shmget, msgget, semget: memory that no limit of a process counts
# unshare, setns, mount, umount2, pivot_root, chroot, move_mount, open_tree, fsopen, fsmount, mount_setattr, name_to_handle_at,
# open_by_handle_at: other roots; io_setup, syslog: what the machine has once for all; ptrace, process_vm_readv, process_vm_writev,
# pidfd_getfd, kcmp: other processes; the rest: the kernel.
X86_64: tuple[int, ...] = (319, 447, 29, 68, 64, 272, 308, 165, 166, 155, 161, 429, 428, 430, 432, 442, 303, 304, 101, 310, 311, 438, 312)
X86_64 += (250, 248, 249, 321, 298, 323, 425, 426, 427, 246, 320, 175, 313, 176, 135, 163, 167, 168, 169, 170, 171, 172, 173, 240, 206, 103)
AARCH64: tuple[int, ...] = (279, 447, 194, 186, 190, 97, 268, 40, 39, 41, 51, 429, 428, 430, 432, 442, 264, 265, 117, 270, 271, 438, 272)
AARCH64 += (219, 217, 218, 280, 241, 282, 425, 426, 427, 104, 294, 105, 273, 106, 92, 89, 224, 225, 142, 161, 162, 180, 0, 116)
MACHINES = {
    "x86_64": (0xC000003E, 56, 435, 41, 155, 442, X86_64),
    "aarch64": (0xC00000B7, 220, 435, 198, 41, 442, AARCH64),
}
SIGNALS = {"x86_64": (62, 200, 234, 129, 297, 424), "aarch64": (129, 130, 131, 138, 240, 424)}

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The system does not give a part of the sandbox; the text says which."""


def needed(outcome: int, what: str) -> int:
    """The outcome of a system call, or Refused."""
    if outcome < 0:
        raise Refused(f"{what} ({os.strerror(ctypes.get_errno())})")
    return outcome


def machine() -> tuple[int, int, int, int, int, int, tuple[int, ...]]:
    """Numbers of this machine's system calls. Raises Refused."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise Refused(f"a sandbox for {sys.platform} on {platform.machine()} (there is one for Linux on {' and '.join(MACHINES)})")
    return MACHINES[platform.machine()]


def dies_with_parent() -> None:
    """SIGKILL comes when the parent ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def takes_orphans() -> None:
    """What loses its parent below this process becomes its child."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def empty_root(root: Path, *, python: Path) -> None:
    """The file system becomes: Python's library and the system's, read-only, and an empty folder. Needs namespaces of its own."""
    os.umask(0o022)
    needed(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount namespaces")
    _mount("tmpfs", root, MS_NOSUID | MS_NODEV, f"size=1m,nr_inodes={FOLDER_FILES},mode=755")
    for path in _runtime(python):
        _bind(path, Path(f"{root}{path}"))
    for folder in _installed(root, _runtime(python)):
        _mount("tmpfs", folder, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=755")
    for device in ("null", "zero", "urandom"):
        _bind(Path("/dev", device), root / "dev" / device)
    work = Path(f"{root}{WORK}")
    work.mkdir()
    options = f"size={FOLDER_BYTES},nr_inodes={FOLDER_FILES},mode=700,uid={INSIDE_ID},gid={INSIDE_ID}"
    _mount("tmpfs", work, MS_NOSUID | MS_NODEV, options)
    (root / "tmp").symlink_to(WORK)
    os.chdir(root)
    needed(libc.syscall(machine()[4], b".", b"."), "pivot_root")
    needed(libc.umount2(b".", MNT_DETACH), "leaving the old root")
    _read_only(b"/", recursive=False)
    os.chdir(WORK)


def limit_each_process(*, processes: bool) -> None:
    """The limits of each process; `enter` watches over those of the tree. `processes`: the user has no others, so they can be counted."""
    limits = [
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, TREE_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 1),  # with 0 a crash would still start the host's handler of crashes, where it has one
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    if processes:
        limits.append((resource.RLIMIT_NPROC, PROCESSES))
    for what, number in limits:
        _, hard = resource.getrlimit(what)
        bound = number if hard == resource.RLIM_INFINITY else min(number, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (bound, bound))


def become(number: int) -> None:
    """Another user, without groups or capabilities (an `execve` follows)."""
    with suppress(OSError):  # an ordinary user may not; the groups mean nothing in the empty root
        os.setgroups([])
    try:
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    except OSError as error:
        raise Refused(f"another user ({error.strerror})") from None


def refuse_system_calls(*, signals: bool) -> None:
    """A seccomp filter: no namespaces, mounts, keys, foreign processes, uncounted memory, sockets but Unix's and IP's.

    `signals`: none to other processes either, for a program that has no namespace of processes.
    """
    architecture, clone, clone3, socket, _, _, refused = machine()
    if signals:
        refused += SIGNALS[platform.machine()]
    jump, load, answer = 0x15, 0x20, 0x06
    allow, fail, no_such = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS
    filters = [(load, 0, 0, 4), (jump, 1, 0, architecture), (answer, 0, 0, 0x80000000), (load, 0, 0, 0)]
    if architecture == MACHINES["x86_64"][0]:
        filters += [(0x35, 0, 1, 0x40000000), (answer, 0, 0, fail)]  # the x32 numbers
    for number in refused:
        filters += [(jump, 0, 1, number), (answer, 0, 0, fail)]
    filters += [(jump, 0, 1, clone3), (answer, 0, 0, no_such)]  # its arguments cannot be looked at; libc then uses clone
    filters += [(jump, 0, 3, clone), (load, 0, 0, 16), (0x45, 0, 1, NAMESPACES), (answer, 0, 0, fail), (load, 0, 0, 0)]
    families = [(jump, left, 0, family) for left, family in ((3, 1), (2, 2), (1, 10))]  # Unix, IPv4, IPv6
    filters += [(jump, 0, 5, socket), (load, 0, 0, 16), *families, (answer, 0, 0, fail), (answer, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *one) for one in filters)
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HP", len(filters), ctypes.addressof(program))
    needed(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    needed(libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0), "a filter of system calls (seccomp)")


def _runtime(python: Path) -> list[Path]:
    """What Python needs of the file system; parents before children, none within another."""
    base = Path(os.path.realpath(sys.base_prefix))
    found = {python, base / "lib", Path(sysconfig.get_path("stdlib")), Path("/etc/ld.so.cache")}
    found |= {Path("/", name) for name in ("lib", "lib64", "lib32", "usr/lib", "usr/lib64")}
    there = sorted(path for path in found if path.exists())
    return [path for path in there if not any(other in path.parents for other in there)]


def _installed(root: Path, runtime: list[Path]) -> list[Path]:
    """Folders of installed packages in the new root: hidden, they are the run's."""
    libraries = [Path(f"{root}{path}") for path in runtime]
    patterns = ("python*/site-packages", "python*/dist-packages", "site-packages", "dist-packages")
    return sorted({found for folder in libraries for pattern in patterns for found in folder.glob(pattern) if found.is_dir()})


def _bind(source: Path, target: Path) -> None:
    """Read-only, at the same place. A link is made again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
        return
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    needed(libc.mount(bytes(source), bytes(target), None, MS_BIND | MS_REC, None), f"a mount of {source}")
    if not str(source).startswith("/dev/"):
        _read_only(bytes(target), recursive=True)


def _read_only(path: bytes, *, recursive: bool) -> None:
    """mount_setattr: read-only and without set-user-id, also for what is mounted below."""
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    needed(libc.syscall(machine()[5], AT_FDCWD, path, flags, attributes, len(attributes)), "read-only mounts (Linux 5.12 or later)")


def _mount(kind: str, target: Path, flags: int, options: str) -> None:
    needed(libc.mount(kind.encode(), bytes(target), kind.encode(), flags, options.encode()), f"a mount of {kind}")
