"""`lightrft train` on two ranks of FSDP2 ends well when it is told to, or killed, and goes on as the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import MAIN, curve, quiet_environment, write_recipe

LIMIT_S = 240
CHANGES = {"num_episodes": 4, "max_steps": 6, "eval_every": 2, "save_every": 3, "fsdp_cpu_offload": True, "verify_sync_every": 2}


def start(recipe: Path, *flags: str, new_session: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MAIN, "train", "--config", str(recipe), "--nproc-per-node", "2", "--json", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet_environment(), start_new_session=new_session
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, err = ended(start(write_recipe(folder, **CHANGES)))
    assert code == 0, err
    assert len(curve(folder / "run")) == 6 * 4
    return folder


def goes_on(cut: Path, recipe: Path, whole: Path) -> None:
    """The run in `cut` resumes and becomes, bitwise, the whole one."""
    code, out, err = ended(start(recipe, "--resume_from", "latest"))
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["stopped"] == ""
    assert curve(cut / "run") == curve(whole / "run"), "bitwise, on the CPU"
    weights = [(folder / "run" / "model" / "model.safetensors").read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_run_that_was_killed_between_two_checkpoints_goes_on_as_the_same_run(tmp_path: Path, whole: Path) -> None:
    recipe = write_recipe(tmp_path, **CHANGES)
    process = start(recipe, new_session=True)
    wait_for(tmp_path / "run" / "metrics.jsonl", '"step": 5', process)  # saved: step 3; step 6 will be
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")} == {"step-3"}
    goes_on(tmp_path, recipe, whole)


@pytest.mark.slow
def test_sigterm_saves_exits_0_and_the_resumed_run_is_the_same_run(tmp_path: Path, whole: Path) -> None:
    cut = write_recipe(tmp_path, **CHANGES)
    process = start(cut)
    wait_for(tmp_path / "run" / "metrics.jsonl", '"step": 1', process)
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["stopped"] == "SIGTERM" and 1 <= summary["steps"] < 6
    assert "SIGTERM: the run is saved" in err and Path(summary["checkpoint"]).name == f"step-{summary['steps']}"
    goes_on(tmp_path, cut, whole)

    code, _, err = ended(start(cut, "--resume_from", "latest", "--learning_rate", "1"))
    assert code == 2 and err.splitlines() == [
        "error: the checkpoint was saved with learning_rate=0.001, here 1.0; set it as it was, or begin a run without resume_from "
        "(docs: troubleshooting#a-resume-is-refused)"
    ]
