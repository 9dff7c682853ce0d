"""One confined process: `python -I -S enter.py PLAN`, with its namespaces, its user, its limits, and a watch over its tree.

Four processes: this one, in the caller's namespaces, watches memory and processor time of all below it; a child has the new namespaces; its
child is their first process, whose end ends all others; and that one's child becomes the program. Exit code 97: the system does not give
what is needed, and standard error says what.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lightrft.utils.sandbox import confine
    from lightrft.utils.sandbox.confine import Refused, needed
else:  # the file beside this one; lightrft itself is not imported here
    sys.path.insert(0, str(Path(__file__).parent))
    import confine
    from confine import Refused, needed

REFUSED_EXIT, OVER_LIMIT_EXIT = 97, 98
WATCH_S = 0.02
FREE = 100
"""From here on no descriptor is in use."""

NOBODY, SOME_USER = 65534, 1_000_000_000
"""Users that nobody is; those from SOME_USER on are one for each process, where the system has so many."""


def main(plan: dict[str, Any]) -> NoReturn:
    """`python`: the interpreter; `source`: the program; `descriptors`: those that become its 0, 1, 3 and 4; `weak`: no namespaces."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        _guarded(lambda: _refuse("a list of a process's children in /proc"))
    unshared, allowed = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _guarded(lambda: _inside(plan, unshared[1], allowed[0]))
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, *plan["descriptors"]}:  # the pipes end with the program, not with this process
        os.dup2(nothing, descriptor)
    os.close(unshared[1])
    confine.takes_orphans()
    signal.signal(signal.SIGTERM, lambda *_: _leave(OVER_LIMIT_EXIT))
    if os.read(unshared[0], 1):
        _guarded(lambda: _give_users(child), go_on=True)
        os.write(allowed[1], b"g")
    _leave(_watched(child))


def _inside(plan: dict[str, Any], unshared: int, allowed: int) -> None:
    confine.dies_with_parent()
    confine.machine()
    if plan["weak"]:
        if os.geteuid() == 0 and not _open_to_all(Path(plan["python"])):
            _refuse(f"a user other than root who may run {plan['python']} (weak programs are never root)")
        _become_program(plan, SOME_USER + os.getpid() if os.geteuid() == 0 else None)
    needed(confine.libc.unshare(confine.NAMESPACES), "namespaces of its own (unshare)")
    os.write(unshared, b"u")
    if not os.read(allowed, 1):
        os._exit(REFUSED_EXIT)
    first = os.fork()
    if first == 0:
        _guarded(lambda: _first(plan))
    _close_given(plan)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)


def _first(plan: dict[str, Any]) -> None:
    """Process 1 of the namespace: when it ends, so do all others."""
    confine.dies_with_parent()
    confine.empty_root(Path("/proc"), python=Path(plan["python"]))
    program = os.fork()
    if program == 0:
        _guarded(lambda: _become_program(plan, confine.INSIDE_ID))
    _close_given(plan)
    while True:
        ended, status = os.wait()
        if ended == program:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _become_program(plan: dict[str, Any], user: int | None) -> None:
    """The descriptors that were given become 0, 1, 3 and 4; all else is closed by execve."""
    words = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, FREE)
    given = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE) for descriptor in plan["descriptors"]]
    for descriptor in {*plan["descriptors"]} - {0, 1, 2}:
        os.close(descriptor)
    for number, descriptor in zip((0, 1, 3, 4), given, strict=False):
        os.dup2(descriptor, number)
    if user is not None:
        confine.become(user)
    confine.limit_each_process(processes=user is not None)
    confine.refuse_system_calls(signals=plan["weak"])
    folder = os.getcwd() if plan["weak"] else confine.WORK
    environment = {"TMPDIR": folder, "HOME": folder, "PYTHONHASHSEED": "0"}
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    try:
        os.execve(plan["python"], [plan["python"], "-I", "-S", "-X", "utf8", "-c", plan["source"]], environment)
    finally:
        os.dup2(words, 2)


def _give_users(child: int) -> None:
    """Root, who prepares, is itself; the program's user is nobody outside. An ordinary user has one user to give, itself."""
    user, group = os.geteuid(), os.getegid()
    if user:
        Path(f"/proc/{child}/setgroups").write_text("deny")
        return _map(child, f"{confine.INSIDE_ID} {user} 1", f"{confine.INSIDE_ID} {group} 1")
    try:
        program = f"0 0 1\n{confine.INSIDE_ID} {SOME_USER + child} 1"
        _map(child, program, program)
    except OSError:  # within a container that has fewer users
        program = f"0 0 1\n{confine.INSIDE_ID} {NOBODY} 1"
        _map(child, program, program)


def _map(child: int, users: str, groups: str) -> None:
    Path(f"/proc/{child}/uid_map").write_text(users)
    Path(f"/proc/{child}/gid_map").write_text(groups)


def _watched(child: int) -> int:
    """The child's exit code; it is ended where its tree takes more than the limits of memory and time together."""
    ended = os.pidfd_open(child)
    while not select.select([ended], [], [], WATCH_S)[0]:
        try:
            seconds, size = _used(os.getpid())
        except OSError as error:  # what is not seen is not limited
            os.kill(child, signal.SIGKILL)
            os.write(2, f"a look at what the processes of a program use ({error.strerror}: {error.filename})".encode())
            return REFUSED_EXIT
        if seconds > confine.CPU_S or size > confine.TREE_BYTES:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return OVER_LIMIT_EXIT
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


def _leave(code: int) -> NoReturn:
    """Ends all below this process, which without namespaces may have left their parents and their group; then itself."""
    while below := _children(os.getpid(), str(os.getpid())):
        for one in below:
            with suppress(ProcessLookupError):
                os.kill(int(one), signal.SIGKILL)
        with suppress(ChildProcessError):
            os.wait()
    os._exit(code)


def _used(process: int) -> tuple[float, int]:
    """Processor seconds and resident bytes of a process and all below it. OSError: one that is there cannot be looked at."""
    seconds, size, waiting = 0.0, 0, [process]
    while waiting:
        one = waiting.pop()
        try:
            stat = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            below = [int(child) for task in os.listdir(f"/proc/{one}/task") for child in _children(one, task)]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        seconds += sum(int(stat[place]) for place in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
        size += int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
        waiting += below
    return seconds, size


def _children(process: int, task: str) -> list[str]:
    return Path(f"/proc/{process}/task/{task}/children").read_text().split()


def _open_to_all(program: Path) -> bool:
    """Whether another user could run it."""
    return all(path.stat().st_mode & 0o001 for path in (program, *program.parents))


def _refuse(what: str) -> NoReturn:
    raise Refused(what)


def _close_given(plan: dict[str, Any]) -> None:
    for descriptor in {0, 1, *plan["descriptors"]} - {2}:
        os.close(descriptor)


def _guarded(work: Any, *, go_on: bool = False) -> None:
    """In a child: what the system refuses is told, and ends it."""
    try:
        work()
    except (Refused, OSError) as error:
        os.write(2, f"{error}\n".encode())
        os._exit(REFUSED_EXIT)
    if not go_on:
        os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
