"""One run to a folder: a second is refused with the owner's name, a lock of one that is gone is taken over and told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lightrft.config.load import make_config
from lightrft.errors import RunFolderError
from lightrft.run.lock import LOCK_FILE, hold, in_use, owner_of, release
from lightrft.run.run_folder import folders_of, hold_folders, release_folders
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer.preflight import preflight_problems

HOLDS = """
import sys, time
from pathlib import Path
from lightrft.run.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def another(tmp_path: Path):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_by_the_owner_s_name(tmp_path: Path, another: subprocess.Popen[str]) -> None:
    with pytest.raises(RunFolderError, match=rf"is in use: process {another.pid} on \S+, since 20.*, runs there; wait for it, end it, or"):
        hold(tmp_path)
    assert f"process {another.pid} on " in in_use(tmp_path)
    config = make_config({"output_dir": str(tmp_path)})
    found = preflight_problems(config, mode="train", registry=fake_registry(), world_size=1)
    assert [line for line in found if "is in use: process" in line], "told before ranks start"


def test_a_folder_that_no_file_system_has_is_told_and_not_looked_for() -> None:
    for name in ("output_dir", "log_dir"):
        found = preflight_problems(make_config({name: "a\0b"}), mode="train", registry=fake_registry(), world_size=1)
        assert f"{name}='a\\x00b' holds a NUL character; give a folder" in found
    found = preflight_problems(make_config({"resume_from": "a\0b"}), mode="train", registry=fake_registry(), world_size=1)
    assert [line for line in found if "resume_from='a\\x00b' is no checkpoint" in line]


def test_one_that_was_killed_leaves_a_lock_that_is_taken_over_and_told(tmp_path: Path, another: subprocess.Popen[str]) -> None:
    os.kill(another.pid, signal.SIGKILL)
    another.wait()
    assert in_use(tmp_path) == ""
    said: list[str] = []
    hold_folders(make_config({"output_dir": str(tmp_path)}), log=said.append)
    assert len(said) == 1 and f"(process {another.pid} on " in said[0]
    release(tmp_path)


def test_one_process_holds_a_folder_as_often_as_it_likes_and_gives_it_back(tmp_path: Path) -> None:
    assert hold(tmp_path) is None and hold(tmp_path) is None
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    release(tmp_path)
    release(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists() and hold(tmp_path) is None
    release(tmp_path)


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    hold(tmp_path)
    child = os.fork()
    if not child:
        signal.pause()
    release(tmp_path)
    try:
        assert hold(tmp_path) is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        release(tmp_path)


def test_the_folder_of_logs_has_a_lock_of_its_own(tmp_path: Path) -> None:
    one, other = (make_config({"output_dir": str(tmp_path / name), "log_dir": str(tmp_path / "logs")}) for name in ("a", "b"))
    assert folders_of(one) == [tmp_path / "a", tmp_path / "logs"]
    hold_folders(one, log=print)
    script = HOLDS.replace("sys.argv[1]", repr(str(tmp_path / "logs")))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "is in use" in found.stderr and folders_of(other)[1] == tmp_path / "logs"
    release_folders(one)


def test_a_script_s_run_holds_its_folder_and_gives_it_back(tmp_path: Path) -> None:
    held: list[bool] = []

    def reward(samples: list[object]) -> list[float]:
        held.append((tmp_path / "run" / LOCK_FILE).exists())
        return [float(n) for n in range(len(samples))]

    make_trainer(tmp_path, reward=reward).fit()
    assert held and all(held) and not (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.parametrize("folder", ["/proc/run", "/sys/run", "/dev/full/run", "x" * 300])
def test_a_folder_that_cannot_be_is_one_line(folder: str) -> None:
    with pytest.raises(RunFolderError, match="cannot be written: .*; give another output_dir or log_dir") as caught:
        hold(Path(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_byte_left_is_one_line(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small device needs the right to mount one")
    try:
        (tmp_path / "filler").write_bytes(bytes(4096))
        with pytest.raises(RunFolderError, match="cannot be written: No space left on device"):
            hold(tmp_path)
        with pytest.raises(RunFolderError, match="cannot be written: No space left on device"):
            hold(tmp_path)  # again: the first has left nothing behind
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


NO_PIDS = ("x", -1, 10**30, None, 1.5)
WRITTEN = {"host": socket.gethostname(), "pid": 1, "since": "yesterday"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100_000,
        *(json.dumps(WRITTEN | {"pid": pid}).encode() for pid in NO_PIDS),
    ],
    ids=["empty", "half", "a list", "no Unicode", "nested", "a word", "negative", "huge", "null", "a part"],
)
def test_words_of_a_lock_that_name_no_process_are_nobody_s(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert in_use(tmp_path) == "" and owner_of(tmp_path) is None and hold(tmp_path) is None
    release(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "link to nothing"])
def test_a_lock_that_is_no_file_is_told_and_left(tmp_path: Path, kind: str) -> None:
    lock, other = tmp_path / LOCK_FILE, tmp_path / "other"
    other.write_text("precious")
    make = {"folder": lock.mkdir, "pipe": lambda: os.mkfifo(lock), "link": lambda: lock.symlink_to(other)}
    make.get(kind, lambda: lock.symlink_to("nowhere/there"))()
    assert "is no file that a run left" in in_use(tmp_path) and owner_of(tmp_path) is None
    with pytest.raises(RunFolderError, match="is no file that a run left"):
        hold(tmp_path)
    assert other.read_text() == "precious" and os.path.lexists(lock)
