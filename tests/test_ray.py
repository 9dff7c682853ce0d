"""A run that Ray starts is the run that torchrun starts. A real Ray on this machine; `make test-ray` installs it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_run import MAIN, curve, quiet_environment, write_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; `make test-ray` installs it"),
]
LIMIT_S = 300


def train(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", MAIN, "train", "--config", recipe.name, *words]
    return subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, timeout=LIMIT_S, cwd=recipe.parent)


def test_ray_starts_the_same_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    by_ray = train(recipe, "--launcher", "ray", "--num-workers", "2", "--output_dir", "by-ray", "--json")
    assert by_ray.returncode == 0, by_ray.stdout[-3000:] + by_ray.stderr[-3000:]
    summary = json.loads(by_ray.stdout.splitlines()[-1])
    assert summary["world_size"] == 2 and summary["steps"] == 2
    by_torchrun = train(recipe, "--nproc-per-node", "2", "--output_dir", "by-torchrun")
    assert by_torchrun.returncode == 0, by_torchrun.stderr
    assert curve(tmp_path / "by-ray") == pytest.approx(curve(tmp_path / "by-torchrun"), rel=1e-6)


def test_a_rank_that_fails_is_told_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("def reward(samples):\n    raise ZeroDivisionError('planted')\n", encoding="utf-8")
    done = train(write_recipe(tmp_path, reward=[f"{tmp_path / 'planted.py'}:reward"]), "--launcher", "ray", "--num-workers", "2")
    assert done.returncode in (1, 2)
    assert "planted" in done.stderr


LOST_ONCE = """
import os, signal
from pathlib import Path

def reward(samples):
    lost = Path({lost!r})
    if os.environ["RANK"] == "1" and Path({saved!r}).is_dir() and not lost.exists():
        lost.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(sample.completion) % 5) for sample in samples]
"""


def test_a_run_whose_rank_is_killed_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    lost, saved = tmp_path / "lost", tmp_path / "by-ray/checkpoints/step-1"
    (tmp_path / "planted.py").write_text(LOST_ONCE.format(lost=str(lost), saved=str(saved)), encoding="utf-8")
    recipe = write_recipe(tmp_path, reward=[f"{tmp_path / 'planted.py'}:reward"], save_every=1, max_steps=3)
    by_ray = train(recipe, "--launcher", "ray", "--num-workers", "2", "--output_dir", "by-ray", "--max-restarts", "1")
    assert by_ray.returncode == 0, by_ray.stdout[-3000:] + by_ray.stderr[-3000:]
    assert lost.exists() and "restart 1 of 1: going on from step 1" in by_ray.stderr
    straight = train(recipe, "--nproc-per-node", "2", "--output_dir", "straight")
    assert straight.returncode == 0, straight.stderr
    assert curve(tmp_path / "by-ray") == pytest.approx(curve(tmp_path / "straight"), rel=1e-6)
