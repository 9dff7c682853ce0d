"""The page of a run that goes on: what it says of slow, stalled, killed and finished runs, and who may read it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lightrft.cli.watch import server
from lightrft.errors import RunFolderError, UserError
from lightrft.run.pulse import pulse, seconds
from lightrft.run.run_data import read_run
from lightrft.run.watch_page import phases, watch_page

NOW = 1_800_000_000.0
MINE = {"host": socket.gethostname(), "pid": os.getpid(), "since": "2026-11-27T00:00:00+00:00"}
TOOK = {"time/rollout_s": 6.0, "time/reward_s": 0.0, "time/update_s": 3.0, "time/sync_s": 1.0, "time/step_s": 11.0, "tokens/rollout": 9.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of this process: three rollouts of at most 40 s, last written 100 s before NOW."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "engine_type": "hf"}))
    (tmp_path / ".lock").write_text(json.dumps(MINE))
    rows = [{"step": n, "rollout/reward": 0.1 * n, **TOOK, "time/step_s": took} for n, took in ((1, 40.0), (2, 11.0), (3, 11.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "rollout/re')
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 3, "prompt": "<script>1", "completion": "2", "reward": 1.0}) + "\n")
    os.utime(tmp_path / "metrics.jsonl", (NOW - 100, NOW - 100))
    os.utime(tmp_path / "samples.jsonl", (NOW - 130, NOW - 130))
    return tmp_path


@pytest.mark.parametrize(("later", "state"), [(0, "running"), (20, "running"), (21, "stalled")])
def test_stalled_is_longer_than_three_of_its_longest_rollouts(folder: Path, later: int, state: str) -> None:
    found = pulse(read_run(folder), now=NOW + later)
    assert (found.state, found.silent_s, found.limit_s) == (state, 100.0 + later, 120.0) and found.goes_on
    if state == "stalled":
        assert found.text.startswith(
            "stalled, not slow: nothing was written for 2 min 1 s, and the longest rollout with its update took 40 s"
        )
    else:
        assert f"last written {seconds(100 + later)} ago" in found.text


def test_a_checkpoint_that_was_taken_away_in_between_is_passed_over(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step-2").symlink_to(folder / "gone")
    assert pulse(read_run(folder), now=NOW).silent_s == 100.0


def test_a_checkpoint_that_was_just_saved_is_a_sign_of_life(folder: Path) -> None:
    (folder / "checkpoints/step-3").mkdir(parents=True)
    os.utime(folder / "checkpoints/step-3", (NOW + 90, NOW + 90))
    assert pulse(read_run(folder), now=NOW + 100).state == "running"


def test_each_rank_has_its_own_line_of_phases(folder: Path) -> None:
    ranks = [{"rollout": [0.0, 6.0], "<b>": [6.0, 4.0]}, {"rollout": [0.0, 2.0], "<b>": [6.0, 4.0]}]
    (folder / "phases.json").write_text(json.dumps({"step": 3, "ranks": ranks}))
    page = watch_page(read_run(folder), pulse(read_run(folder), now=NOW), every_s=5)
    assert page.count("<b>rank ") == 2 and "Rollout 3, 10 s from the begin" in page and "<i style='left:0.00%;width:20.00%;" in page
    assert "&lt;b&gt;: 4 s, from 6 s on" in page and "<span>6 s</span>" in page
    (folder / "phases.json").write_text('{"step": 3, "ra')
    assert "each phase as long as on its slowest rank" in watch_page(read_run(folder), pulse(read_run(folder), now=NOW), every_s=5)


def test_without_two_rollouts_nothing_can_be_told(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, **TOOK}) + "\n")
    found = pulse(read_run(folder), now=time.time() + 5000)
    assert (found.state, found.limit_s) == ("starting", None) and "two rollouts will tell" in found.text


def test_quick_rollouts_may_be_silent_for_a_minute(folder: Path) -> None:
    rows = [{"step": n, "time/step_s": 0.5} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pulse(read_run(folder), now=NOW).limit_s == 60.0


def test_a_run_whose_process_is_gone(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / ".lock").write_text(json.dumps(MINE | {"pid": gone.pid}))
    (folder / "failure.txt").write_text("rank 1 failed")
    found = pulse(read_run(folder), now=NOW + 900)
    assert found.state == "failed" and not found.goes_on and "failure.txt says why" in found.text


def test_a_finished_run_and_one_that_was_resumed_over_its_summary(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"steps": 3, "seconds": 62.0}))
    assert pulse(read_run(folder), now=NOW).state == "running", "its process is there"
    (folder / ".lock").unlink()
    found = pulse(read_run(folder), now=NOW + 9000)
    assert (found.state, found.text) == ("ended", "finished")
    assert "http-equiv" not in watch_page(read_run(folder), found, every_s=5)


def test_the_page(folder: Path) -> None:
    run = read_run(folder)
    text = watch_page(run, pulse(run, now=NOW + 50), every_s=7)
    assert "<meta http-equiv='refresh' content='7'>" in text and "<div class='pulse stalled'>" in text
    assert "<script" not in text and "&lt;script&gt;1" in text
    assert "http://" not in text and "https://" not in text and "src=" not in text
    assert phases(TOOK) == {"rollout": 6.0, "update": 3.0, "sync": 1.0}
    assert "margin-left:60.00%;width:30.00%" in text and "Rollout 3: 11 s; each phase as long as on its slowest rank." in text


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with server(str(folder), port=0, every_s=5) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join(10)


def got(address: str, **headers: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_serves_one_page_as_the_run_is_now(folder: Path, address: str) -> None:
    status, text = got(f"{address}/")
    assert status == 200 and "Phases of the last rollout" in text and "warning'>" not in text
    (folder / "warnings.jsonl").write_text(json.dumps({"step": 3, "name": "flat", "text": "nothing is learned"}) + "\n")
    assert "nothing is learned" in got(f"{address}/")[1]
    assert got(f"{address}/config.yaml")[0] == 404 and got(f"{address}/", Host="evil.example:80")[0] == 403
    (folder / "config.yaml").unlink()
    status, text = got(f"{address}/")
    assert status == 404 and "holds no run: it has no config.yaml" in text


def test_what_cannot_be_watched_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run: it is no folder"):
        server(str(tmp_path / "none"), port=0, every_s=5)
    with pytest.raises(UserError, match="--every 0: give at least 1 second"):
        server(str(folder), port=0, every_s=0)
    with server(str(folder), port=0, every_s=5) as first, pytest.raises(UserError, match="cannot be had: .*; give another, or 0"):
        server(str(folder), port=first.server_port, every_s=5)
    done = subprocess.run([sys.executable, "-m", "lightrft.cli.main", "watch", str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
