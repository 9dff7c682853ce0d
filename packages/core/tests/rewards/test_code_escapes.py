"""Programs of the model that try to reach or keep what is not theirs, or to take more than theirs.

An escape says what it has reached, and the test is that it has reached nothing: it has to pass, so that a program that did not run at all is
no success.
"""

# ruff: noqa: E501  # programs, each with its test, one a line

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightrft.utils.sandbox import enter, lacking, passes


@pytest.fixture(scope="module", autouse=True)
def _whole() -> None:
    if lacking():
        pytest.skip(f"this system gives no whole sandbox: {lacking()}")


LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef call(*a):\n    return libc.syscall(*a) < 0\n"
TRIES = """
def tries(work):
    try:
        return work()
    except BaseException as error:
        return type(error).__name__
"""

ESCAPES: dict[str, tuple[str, str]] = {
    "the password file": ("import os\ndef look(): return os.path.exists('/etc/passwd')", "assert look() is False"),
    "a file of the run": ("import os\ndef look(): return os.path.exists(FILE)", "assert look() is False"),
    "writing to a file of the run": (TRIES + "def look(): return tries(lambda: open(FILE, 'w').write('gone'))", "assert look() == 'FileNotFoundError'"),
    "deleting a file of the run": (TRIES + "import os\ndef look(): return tries(lambda: os.remove(FILE))", "assert look() == 'FileNotFoundError'"),
    "the reward's own source": ("import os\ndef look(): return os.path.exists(SOURCE)", "assert look() is False"),
    "installed packages": (
        "import sys\ndef look():\n    sys.path += [p + '/site-packages' for p in sys.path]\n    try: import torch\n    except ImportError: return 'none'",
        "assert look() == 'none'",
    ),
    "the root": (
        "import os\ndef look(): return sorted(os.listdir('/'))",
        "assert not {'home', 'proc', 'sys', 'run', 'var', 'boot', 'opt', 'mnt'} & {*look()}",
    ),
    "files in the whole tree": (
        "import os\ndef look(): return [os.path.join(d, f) for d, _, fs in os.walk('/') for f in fs if f.endswith(('.jsonl', '.safetensors', '.env'))]",
        "assert look() == []",
    ),
    "an empty folder": ("import os\ndef look(): return os.getcwd(), os.listdir('.'), os.listdir('/tmp')", "assert look() == ('/work', [], [])"),
    "a place to write elsewhere": (
        "import os\ndef look():\n    found = []\n    for d, _, _ in os.walk('/'):\n        if d.startswith('/work'): continue\n"
        "        try:\n            open(d + '/x', 'w').close()\n            found.append(d)\n        except OSError: pass\n    return found",
        "assert look() == ['/tmp'] or look() == []",
    ),
    "shared memory": ("import os\ndef look(): return os.path.exists('/dev/shm')", "assert look() is False"),
    "devices": ("import os\ndef look(): return sorted(os.listdir('/dev'))", "assert look() == ['null', 'urandom', 'zero']"),
    "a device of its own": (TRIES + "import os, stat\ndef look(): return tries(lambda: os.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(8, 0)))", "assert look() == 'PermissionError'"),
    "other processes": ("import os\ndef look(): return os.path.exists('/proc'), os.getppid()", "assert look() == (False, 1)"),
    "signals to all": (
        "import os\ndef look():\n    found = []\n    for pid in range(3, 100000):\n        try:\n            os.kill(pid, 0)\n            found.append(pid)\n"
        "        except OSError: pass\n    return found",
        "assert look() == []",
    ),
    "tracing process 1": (LIBC + "def look(): return libc.ptrace(16, 1, 0, 0), ctypes.get_errno()", "assert look() == (-1, 1)"),
    "reading process 1": (LIBC + "def look(): return call(310, 1, 0, 0, 0, 0, 0)", "assert look() is True"),
    "the environment": ("import os\ndef look(): return sorted(os.environ)", "assert not [n for n in look() if n not in ('TMPDIR', 'HOME', 'PYTHONHASHSEED', 'LC_CTYPE')]"),
    "descriptors": (
        "import os\ndef look():\n    found = []\n    for fd in range(256):\n        try:\n            os.fstat(fd)\n            found.append(fd)\n        except OSError: pass\n    return len(found)",
        "assert look() <= 8",
    ),
    "a server of this machine": (
        TRIES + "import socket\ndef look(): return tries(lambda: socket.create_connection(('127.0.0.1', PORT), 2))",
        "assert look() in ('ConnectionRefusedError', 'OSError')",
    ),
    "the network": (TRIES + "import socket\ndef look(): return tries(lambda: socket.create_connection(('1.1.1.1', 53), 2))", "assert look() == 'OSError'"),
    "a name": (TRIES + "import socket\ndef look(): return tries(lambda: socket.gethostbyname('example.org'))", "assert look() == 'gaierror'"),
    "a socket by path": (TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(socket.AF_UNIX).connect(SOCKET))", "assert look() == 'FileNotFoundError'"),
    "a socket by an abstract name": (
        TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + NAME))",
        "assert look() == 'ConnectionRefusedError'",
    ),
    "the host of a virtual machine": (TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(40, 1, 0))", "assert look() == 'PermissionError'"),
    "packets": (TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(17, 3, 0))", "assert look() == 'PermissionError'"),
    "netlink": (TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(16, 3, 0))", "assert look() == 'PermissionError'"),
    "another user": (TRIES + "import os\ndef look(): return tries(lambda: os.setuid(0)), os.getuid()", "assert look() in (('PermissionError', 1000), ('OSError', 1000))"),
    "capabilities": (LIBC + "def look(): return [n for n in range(41) if libc.prctl(24, 999, 0, 0, 0) == 0]", "assert look() == []"),
    "namespaces": (LIBC + "def look(): return libc.unshare(0x10000000), libc.unshare(0x00020000)", "assert look() == (-1, -1)"),
    "namespaces by clone": (LIBC + "def look(): return call(56, 0x10000000 | 17, 0, 0, 0, 0)", "assert look() is True"),
    "namespaces by clone3": (LIBC + "def look(): return call(435, 0, 0), ctypes.get_errno()", "assert look() == (True, 38)"),
    "mounts": (LIBC + "def look(): return libc.mount(b'tmpfs', b'/work', b'tmpfs', 0, None), libc.umount2(b'/work', 2)", "assert look() == (-1, -1)"),
    "another root": (TRIES + "import os\ndef look(): return tries(lambda: os.chroot('/work'))", "assert look() == 'PermissionError'"),
    "handles of files": (LIBC + "def look(): return call(304, -100, 0, 0)", "assert look() is True"),
    "keys": (LIBC + "def look(): return call(250, 0, -3, 1), call(248, b'user', b'x', b'y', 1, -3)", "assert look() == (True, True)"),
    "programs in the kernel": (LIBC + "def look(): return call(321, 0, 0, 0), call(298, 0, 0, 0, 0, 0), call(425, 8, 0)", "assert look() == (True, True, True)"),
    "files in memory": (TRIES + "import os\ndef look(): return tries(lambda: os.memfd_create('x'))", "assert look() == 'PermissionError'"),
    "memory that nobody counts": (LIBC + "def look(): return libc.shmget(0, 1 << 20, 0o1600)", "assert look() == -1"),
    "higher limits": (
        TRIES + "import resource\ndef look(): return tries(lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)))",
        "assert look() == 'ValueError'",
    ),
    "all asynchronous I/O of this machine": (
        LIBC + "def look(): return call(206, 60000, ctypes.byref(ctypes.c_ulong())), ctypes.get_errno()",
        "assert look() == (True, 1)",
    ),
    "the kernel's log": (LIBC + "def look(): return call(103, 10, 0, 0), call(103, 3, ctypes.create_string_buffer(99), 99)", "assert look() == (True, True)"),
    "programs that run as root": (LIBC + "import os\ndef look(): return libc.prctl(39, 0, 0, 0, 0), os.getresuid()", "assert look() == (1, (1000, 1000, 1000))"),
    "Python's own library": (
        TRIES + "import os\ndef look(): return [tries(lambda: open(p, 'r+')) for p in (os.__file__, '/etc/ld.so.cache')]",
        "assert all(one in ('PermissionError', 'OSError') for one in look())",
    ),
    "rights of devices": (TRIES + "import os\ndef look(): return tries(lambda: os.chmod('/dev/null', 0))", "assert look() == 'PermissionError'"),
    "a link to what lies outside": (
        TRIES + "import os\ndef look():\n    os.symlink('/proc/1/root', 'out')\n    return tries(lambda: os.listdir('out')), tries(lambda: os.stat('/../../etc/passwd'))",
        "assert look() == ('FileNotFoundError', 'FileNotFoundError')",
    ),
    "a place before all others": (
        TRIES + "import os\ndef look(): return tries(lambda: os.nice(-5)), tries(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))",
        "assert look() == ('PermissionError', 'PermissionError')",
    ),
    "mounts made anew": (
        LIBC + "def look(): return libc.mount(None, b'/', None, 4096 | 32, None), call(433, -100, b'/', 0), call(442, -100, b'/', 0, 0, 0)",
        "assert look() == (-1, True, True)",
    ),
    "descriptors of process 1": (LIBC + "import os\ndef look(): return call(438, os.pidfd_open(1), 0, 0)", "assert look() is True"),
    "the time of this machine": (TRIES + "import time\ndef look(): return tries(lambda: time.clock_settime(0, 0))", "assert look() == 'PermissionError'"),
    "the name of this machine": (TRIES + "import socket\ndef look(): return tries(lambda: socket.sethostname('x'))", "assert look() in ('PermissionError', 'OSError')"),
    "the host's handler of crashes": ("import resource\ndef look(): return resource.getrlimit(resource.RLIMIT_CORE)", "assert look() == (1, 1)"),
    "system calls of 32 bits": (
        "import ctypes, mmap, os\ndef look():\n    child = os.fork()\n    if child == 0:\n        code = mmap.mmap(-1, 4096, prot=7)\n"
        "        code.write(bytes.fromhex('b814000000cd80c3'))\n        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()\n        os._exit(0)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])",
        "assert look() == -31",
    ),
    "system calls by their x32 numbers": (LIBC + "def look(): return call(0x40000000 | 39), call(0x40000000 | 272, 0x10000000)", "assert look() == (True, True)"),
    "limits of process 1": (TRIES + "import resource\ndef look(): return tries(lambda: resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)))", "assert look() == 'PermissionError'"),
    "the end of process 1, by its descriptor": (TRIES + "import os, signal\ndef look(): return tries(lambda: signal.pidfd_send_signal(os.pidfd_open(1), 9))", "assert look() == 'PermissionError'"),
    "raw packets": (TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(2, 3, 1)), tries(lambda: socket.socket(10, 3, 58))", "assert look() == ('PermissionError', 'PermissionError')"),
    "the network of its own, put up": (
        TRIES + "import fcntl, socket, struct\ndef look():\n    with socket.socket() as s: return tries(lambda: fcntl.ioctl(s, 0x8914, struct.pack('16sH', b'lo', 1)))",
        "assert look() == 'PermissionError'",
    ),
    "ciphers of the kernel": (TRIES + "import socket\ndef look(): return tries(lambda: socket.socket(38, 5, 0))", "assert look() == 'PermissionError'"),
    "watching all files": (LIBC + "def look(): return call(300, 0, 0), call(452, 0)", "assert look() == (True, True)"),
    "queues of messages": (LIBC + "def look(): return call(240, b'q', 0o102, 0o600, 0), call(68, 0, 0o1600)", "assert look() == (True, True)"),
    "pipes of a gigabyte": (
        TRIES + "import fcntl, os\ndef look():\n    held = 0\n    for _ in range(28):\n        r, w = os.pipe()\n        try: held += fcntl.fcntl(w, 1031, 64 << 20)\n"
        "        except OSError: pass\n    return held",
        "assert look() == 0",
    ),
    "a process that outlives its end": (
        "import os, time\ndef look():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: time.sleep(600)\n        os._exit(0)\n    return os.wait()[1]",
        "assert look() == 0",
    ),
    "three gigabytes": (TRIES + "def look(): return tries(lambda: bytearray(3 << 30))", "assert look() == 'MemoryError'"),
    "a large file": (
        TRIES + "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ndef look(): return tries(lambda: open('big', 'wb').write(b'x' * (64 << 20)))",
        "assert look() == 'OSError'",
    ),
    "many files": (
        TRIES + "def fill():\n    for n in range(20):\n        with open(str(n), 'wb') as file: file.write(b'x' * (8 << 20))\ndef look(): return tries(fill)",
        "assert look() == 'OSError'",
    ),
    "very many files": (TRIES + "def fill():\n    for n in range(5000): open(str(n), 'w').close()\ndef look(): return tries(fill)", "assert look() == 'OSError'"),
    "many processes": (
        "import os, time\ndef look():\n    n = 0\n    for _ in range(300):\n        try:\n            if os.fork() == 0:\n                time.sleep(30)\n                os._exit(0)\n"
        "            n += 1\n        except OSError: break\n    return n",
        "assert look() <= 16",
    ),
    "many threads": (
        "import threading, time\ndef look():\n    n = 0\n    for _ in range(300):\n        try:\n            threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "            n += 1\n        except RuntimeError: break\n    return n",
        "assert look() <= 16",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What the programs try to reach."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_text("precious")
    name = f"lightrft-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as path, socket.socket(socket.AF_UNIX) as abstract:
        path.bind(str(folder / "s"))
        path.listen()
        abstract.bind("\0" + name)
        abstract.listen()
        yield {
            "FILE": str(folder / "metrics.jsonl"),
            "SOURCE": str(Path(passes.__code__.co_filename)),
            "SOCKET": str(folder / "s"),
            "NAME": name,
            "PORT": server.getsockname()[1],
        }
    assert (folder / "metrics.jsonl").read_text() == "precious"


@pytest.mark.parametrize("name", ESCAPES)
def test_a_program_reaches_nothing(name: str, here: dict[str, object]) -> None:
    program, tests = ESCAPES[name]
    if " call(" in program and platform.machine() != "x86_64":
        pytest.skip("the numbers of these system calls are those of x86_64")
    setting = "".join(f"{key} = {value!r}\n" for key, value in here.items())
    assert passes(setting + program, tests, wall_s=60)  # a walk over the tree takes 10 s where nothing of it is cached


def test_memory_and_time_are_limited_for_all_processes_together() -> None:
    memory = (
        "import os, time\ndef grab():\n    for _ in range(4):\n        if os.fork() == 0:\n            x = bytearray(700 << 20)\n"
        "            for i in range(0, len(x), 4096): x[i] = 1\n            time.sleep(30)\n    time.sleep(4)\n    return 'held'"
    )
    begun = time.monotonic()
    assert not passes(memory, "assert grab() == 'held'", wall_s=10)
    assert time.monotonic() - begun < 8, "ended by its memory, not by the time"
    spin = "import os\ndef spin():\n    for _ in range(7): os.fork()\n    while True: pass"
    begun = time.monotonic()
    assert not passes(spin, "assert spin() is None", wall_s=30)
    assert time.monotonic() - begun < 25, "ended by the processor time of the tree"


def test_a_process_that_cannot_be_looked_at_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with other users' processes hidden in /proc: what is not seen is not limited."""
    from lightrft.utils.sandbox import enter

    def hidden(process: int, task: str) -> list[str]:
        raise PermissionError(13, "Permission denied", f"/proc/{process}/task/{task}/children")

    assert enter._used(os.getpid())[1] > 1 << 20 and enter._used(1 << 30) == (0.0, 0)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    monkeypatch.setattr(enter, "_children", hidden)
    with pytest.raises(PermissionError):
        enter._used(child)
    read, write = os.pipe()
    words = os.dup(2)
    os.dup2(write, 2)
    try:
        code = enter._watched(child)
    finally:
        os.dup2(words, 2)
    assert code == enter.REFUSED_EXIT
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert os.read(read, 200).startswith(b"a look at what the processes of a program use (Permission denied: /proc/")
    for descriptor in (read, write, words):
        os.close(descriptor)


def test_nothing_outlives_the_verdict() -> None:
    marker = f"lightrft-left-{os.getpid()}"
    program = (
        "import os, time, ctypes\n"
        f"def stay():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            ctypes.CDLL(None).prctl(15, {marker[:15]!r}.encode())\n"
        "            while True: time.sleep(0.1)\n        os._exit(0)\n    time.sleep(0.3)\n    return 1\n"
    )
    assert passes(program, "assert stay() == 1")
    time.sleep(0.3)
    assert not [path for path in Path("/proc").glob("[0-9]*/comm") if _text(path).strip() == marker[:15]]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_processes_that_have_left_their_parents_end_too() -> None:
    """As without namespaces, where nothing but `enter` keeps them together: one in a session of its own, whose parent has ended."""
    script = f"""
import os, sys, time
sys.path.insert(0, {str(Path(enter.__file__).parent)!r})
import confine, enter
confine.takes_orphans()
top, (read, write) = os.getpid(), os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while os.getppid() != top:
            time.sleep(0.01)
        os.write(write, str(os.getpid()).encode())
        time.sleep(60)
    os._exit(0)
orphan = int(os.read(read, 20))
print(orphan, flush=True)
assert enter._used(top)[1] > enter._used(orphan)[1] > 1 << 20
enter._leave(7)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (7, "")
    assert not Path("/proc", found.stdout.strip()).exists()
