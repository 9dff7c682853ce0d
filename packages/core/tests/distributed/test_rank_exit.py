"""The end of a rank: everything that Python does at its end has been done, and its interpreter is not taken down."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from lightrft.distributed.rank_exit import exit_rank

class Told:
    def __del__(self):
        open("destroyed", "w").close()

def late():
    time.sleep(0.3)
    sys.stdout.write("thread\\n")  # in one piece: two threads do

kept = Told()
log = open("log.txt", "w")
log.write("buffered")
temporary = tempfile.TemporaryDirectory(dir=".", prefix="temporary")
child = subprocess.Popen(["sleep", "60"])
atexit.register(child.kill)
atexit.register(print, "first registered")
atexit.register(print, "last registered")
pool = ThreadPoolExecutor(1)
pool.submit(late)
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(child.pid)
exit_rank(CODE)
"""


@pytest.mark.parametrize("code", [0, 2, 130])
def test_threads_then_atexit_then_files_and_no_destructor(code: int, tmp_path: Path) -> None:
    program = PROGRAM.replace("CODE", str(code))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, done.stderr
    assert done.stdout.split("\n")[1:] == ["thread", "thread", "last registered", "first registered", ""]
    assert done.stderr == ""
    assert (tmp_path / "log.txt").read_text() == "buffered"
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"], "the temporary folder is gone, and nothing was destroyed"
    child = Path("/proc", done.stdout.split("\n")[0])
    assert not child.exists() or "Z" in (child / "stat").read_text().rsplit(")", 1)[1].split()[0], "it was killed"


def test_an_atexit_function_that_fails_is_told_and_the_code_stays(tmp_path: Path) -> None:
    program = "import atexit\nfrom lightrft.distributed.rank_exit import exit_rank\natexit.register(lambda: 1 / 0)\nexit_rank(0)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "ZeroDivisionError" in done.stderr


RANK = {"RANK": "0", "WORLD_SIZE": "1"}
FINALIZED = """
import sys
sys.argv = ["lightrft", *sys.argv[1:]]
class Told:
    def __del__(self):
        print("taken down")
sys.modules["kept"] = Told()
from lightrft.cli.main import run
run()
"""


@pytest.mark.parametrize(("words", "code"), [(["plugins"], 0), (["train", "--seed", "x"], 2), (["trian"], 2)])
@pytest.mark.parametrize("rank", [{}, RANK])
def test_lightrft_under_torchrun_ends_so_and_elsewhere_does_not(rank: dict[str, str], words: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FINALIZED, *words]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)} | rank
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == code, done.stderr
    assert ("taken down" in done.stdout) == (not rank)
    assert "seed='x'" in done.stderr or code == 0 or words == ["trian"]
