"""`async_save` on two ranks: killed in the middle of a save, a run has its older checkpoint whole and goes on as the straight run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_run import MAIN, curve, quiet_environment, write_recipe

from lightrft.run.checkpoint_folder import damage, saved_in

LIMIT_S = 240
BACKENDS: dict[str, dict[str, Any]] = {"fsdp": {"strategy": "fsdp"}, "zero-2": {"strategy": "deepspeed", "zero_stage": 2}}

REWARD = """
import os, time
from pathlib import Path
from lightrft.distributed import atomic_folder

def held(temporary, folder, replace=atomic_folder.replace):
    if folder.name == "step-2":
        Path(os.environ["HELD"]).touch()
        time.sleep(600)
    replace(temporary, folder)

if "HELD" in os.environ:
    atomic_folder.replace = held

def reward(samples):
    return [float(len(s.completion) % 5) for s in samples]
"""
"""Where it is told to, the save of step 2 never gets its name; the run of rank 0 trains beside the thread that waits."""


def train(recipe: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MAIN, "train", "--config", str(recipe), "--nproc-per-node", "2", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=quiet_environment() | environment, start_new_session=True
    )


def finished(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fsdp", pytest.param("zero-2", marks=pytest.mark.long)])
def test_killed_in_the_middle_of_a_save_the_run_goes_on_as_the_straight_run(tmp_path: Path, backend: str) -> None:
    (tmp_path / "held.py").write_text(REWARD, encoding="utf-8")
    settings = BACKENDS[backend] | {"reward": [f"{tmp_path / 'held.py'}:reward"], "num_episodes": 3, "max_steps": 4}
    finished(train(write_recipe(tmp_path, **settings), "--output_dir", str(tmp_path / "whole")))

    recipe = write_recipe(tmp_path, **settings, async_save=True, save_every=1)
    process, run, mark = train(recipe, HELD=str(tmp_path / "mark")), tmp_path / "run", tmp_path / "mark"
    deadline = time.monotonic() + LIMIT_S
    while not (mark.exists() and (run / "metrics.jsonl").read_text().count('"rollout/reward"') >= 3):  # step 3, beside the save of step 2
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert [one.step for one in saved_in(run)] == [1] and damage(saved_in(run)[0].folder) == ""
    assert (run / "checkpoints" / ".step-2.tmp").is_dir(), "the kill came before it was whole"

    finished(train(recipe, "--resume_from", "latest"))
    assert [one.step for one in saved_in(run)] == [2, 3, 4] and not list((run / "checkpoints").glob(".step-*"))
    assert curve(run) == curve(tmp_path / "whole"), "bitwise, on the CPU"
    assert (run / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model/model.safetensors").read_bytes()
