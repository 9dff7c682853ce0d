"""All ranks end, soon, and the first cause is named, whatever way one of them fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightrft.cli.start import start_ranks
from lightrft.config.load import make_config
from lightrft.distributed.failure import RankFailure
from lightrft.distributed.launch import LaunchResult, _cause, launch

COLLECTIVE = """
import os, signal, sys, time
import torch, torch.distributed as dist
from lightrft.distributed.failure import reporting_failures
from lightrft.errors import PeerError, RewardError
from pathlib import Path

rank = int(os.environ["RANK"])
def fail_here():
    {failure}

def train():
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        fail_here()
    dist.all_reduce(torch.ones(1))
    time.sleep(60)

with reporting_failures():
    train()
"""
PLAIN = """
import os, sys, time
from lightrft.distributed.failure import reporting_failures
from lightrft.errors import PeerError, RewardError
rank = int(os.environ["RANK"])
with reporting_failures():
    {body}
"""
LIMIT_S = 30


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "ranks.py"
    path.write_text(text, encoding="utf-8")
    return [sys.executable, str(path)]


def plain(tmp_path: Path, body: str) -> list[str]:
    return script(tmp_path, PLAIN.format(body=textwrap.indent(textwrap.dedent(body), "    ").strip()))


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        ("raise KeyError('lost')", ["rank 1 failed in fail_here (ranks.py:", "Traceback", "KeyError: 'lost'"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["rank 1 was killed by SIGKILL"]),
        ("os._exit(3)", ["rank 1 exited with code 3"]),
    ],
)
def test_a_rank_that_ends_while_the_other_waits_in_a_collective(
    failure: str, named: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    result = launch(script(tmp_path, COLLECTIVE.format(failure=failure)), nproc_per_node=2)
    assert time.monotonic() - start < LIMIT_S
    assert result.exit_code == 1
    errors = capfd.readouterr().err.strip().splitlines()
    assert errors[0].startswith(named[0])
    for text in named:
        assert sum(text in line for line in errors) == 1
    assert "ChildFailedError" not in "\n".join(errors)
    assert "closing signal" not in "\n".join(errors)


def test_a_user_error_in_a_rank_is_one_line_and_exit_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = """
    if rank == 0:
        raise PeerError("rewards failed on rank 1 of its group: RewardError: bad")
    time.sleep(0.5)
    raise RewardError("reward 'x' gave NaN for sample 3")
    """
    result = launch(plain(tmp_path, body), nproc_per_node=2)
    assert result.exit_code == 2
    assert result.cause is not None and result.cause.rank == 1
    assert capfd.readouterr().err == "error: reward 'x' gave NaN for sample 3 (docs: troubleshooting#a-reward-fails)\n"


def test_a_user_error_shows_its_traceback_when_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTRFT_TRACEBACK", "1")
    assert launch(plain(tmp_path, "raise RewardError('bad')"), nproc_per_node=1).exit_code == 2
    errors = capfd.readouterr().err
    assert "Traceback (most recent call last)" in errors and "ranks.py" in errors and "failure.py" not in errors


def test_the_ranks_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = dict(os.environ)
    names = "('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'WORLD_SIZE')"
    body = f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert launch(plain(tmp_path, body), nproc_per_node=2).exit_code == 0
    cores = len(os.sched_getaffinity(0))
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"{max(1, cores // 2)} PASSIVE 2"] * 2
    assert dict(os.environ) == before
    assert list((tmp_path / "temporary").iterdir()) == []


LISTENING = """
import json, os, re
from pathlib import Path
import torch, torch.distributed as dist

def listening(pid):
    held = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held |= set(re.findall(r"socket:.(\\d+)", os.readlink(fd)))
        except FileNotFoundError:
            pass
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in held:
                yield words[1].partition(":")[0]

dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
dist.all_reduce(torch.ones(1), group=dist.new_group())
found = {"launcher": list(listening(os.getppid())), "rank": list(listening(os.getpid())), "store": os.environ["MASTER_ADDR"]}
everyone = [None, None]
dist.all_gather_object(everyone, found)
if dist.get_rank() == 0:
    Path("found.json").write_text(json.dumps(everyone))
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_listens_beyond_the_loopback_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch(script(tmp_path, LISTENING), nproc_per_node=2).exit_code == 0
    everyone = json.loads(Path("found.json").read_text(encoding="utf-8"))
    here = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, ::1 and the first as IPv6
    for one in everyone:
        assert one["launcher"] and set(one["launcher"]) <= here, everyone
        assert one["rank"] and set(one["rank"]) <= here, everyone
        assert one["store"] == "127.0.0.1"


def test_no_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match="nproc_per_node=0"):
        launch(["true"], nproc_per_node=0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_script_starts_its_ranks_and_they_end_with_it(number: signal.Signals, code: int, tmp_path: Path) -> None:
    text = f"""
    import os, time
    from lightrft.distributed.launch import relaunch_if_needed
    relaunch_if_needed(2)
    open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid()))
    time.sleep(120)
    """
    command = script(tmp_path, textwrap.dedent(text))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        pids = [wait_for_pid(tmp_path / str(rank)) for rank in range(2)]
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert errors == "stopped by SIGINT; all ranks have ended\n"
        assert not list(tmp_path.glob("lightrft-*"))
    for pid in pids:
        wait_until_gone(pid)


def wait_for_pid(path: Path) -> int:
    end = time.monotonic() + LIMIT_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path.name} did not start"
        time.sleep(0.05)
    return int(path.read_text())


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end, f"process {pid} is an orphan"
        time.sleep(0.05)


def test_a_rank_that_ends_its_process_with_0_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lightrft.cli.start.launch", lambda command, **given: LaunchResult(exit_code=0))
    with pytest.raises(SystemExit) as caught:
        start_ranks(make_config({}), mode="train", nproc_per_node=1)
    assert caught.value.code == 1
    assert "rank 0 ended with code 0 before the job was over: something that it ran has ended its process" in capsys.readouterr().err


def test_a_rank_that_was_killed_is_not_told_as_one_that_hangs(tmp_path: Path) -> None:
    """Others told, 20 s later, that it gave no sign of life; where its end came with their report or after it, they killed it."""

    def ended(timestamp: int, exitcode: int) -> Any:
        return SimpleNamespace(timestamp=timestamp, exitcode=exitcode, signal_name=lambda: "SIGKILL" if exitcode < 0 else "")

    hung = RankFailure(rank=1, time_ns=120 * 10**9 + 5, kind="hung", message="rank 1 has given no sign of life", traceback="stacks\n")
    waits = RankFailure(rank=0, time_ns=121 * 10**9, kind="peer", message="waits for rank 1")
    for failure in (hung, waits):
        (tmp_path / f"rank{failure.rank}.json").write_text(json.dumps(asdict(failure)))
    before = _cause(tmp_path, {1: ended(100, -9), 0: ended(121, 1)})
    assert (before.rank, before.kind) == (1, "killed") and before.text().startswith("rank 1 was killed by SIGKILL")
    for timestamp, exitcode in ((120, -9), (125, -9), (100, 1)):
        assert _cause(tmp_path, {1: ended(timestamp, exitcode), 0: ended(121, 1)}) == hung


WAITS_FOR_EVER = """
import os, signal, sys, time
from lightrft.distributed.failure import reporting_failures

with reporting_failures():
    from lightrft.config.hang_limits import HangLimits
    from lightrft.distributed.watchdog import watching
    from lightrft.distributed.world import World

    world = World.join(need_group=True)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with watching(world, HangLimits(default=300, silence=20)):
        time.sleep(2)
        if world.rank == 1:
            open(sys.argv[1], "w").write(str(time.time()))
            END
        time.sleep(1000)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "kind"), [("os.kill(os.getpid(), signal.SIGKILL)", "killed"), ("raise ZeroDivisionError", "error")], ids=["killed", "raised"]
)
def test_ranks_that_wait_as_on_nccl_and_ignore_sigterm_end_soon(end: str, kind: str, tmp_path: Path) -> None:
    """No collective raises in them; before, the launcher killed them after 30 s, and the one that was killed was told as hanging."""
    script, stamp = tmp_path / "script.py", tmp_path / "stamp"
    script.write_text(WAITS_FOR_EVER.replace("END", end))
    result = launch([sys.executable, str(script), str(stamp)], nproc_per_node=3)
    assert time.time() - float(stamp.read_text()) < 25
    assert result.cause is not None and (result.cause.rank, result.cause.kind) == (1, kind)


def test_a_loopback_interface_that_is_down_is_one_line() -> None:
    """In a network namespace of its own, where nobody has brought it up: torch's store tried for five minutes."""
    script = """
import ctypes, sys
if ctypes.CDLL(None).unshare(0x40000000 | 0x10000000):  # network, user
    sys.exit(77)
from lightrft.distributed.launch import launch
from lightrft.errors import UserError
try:
    launch([sys.executable, "-c", "pass"], nproc_per_node=1)
except UserError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    if found.returncode == 77:
        pytest.skip("this system gives no network namespace")
    assert (found.stderr, found.stdout) == (
        "", "ranks meet at 127.0.0.1, which cannot be reached here (Network is unreachable); bring it up: ip link set lo up\n"
    )  # fmt: skip
