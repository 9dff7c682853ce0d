"""The example distributions, installed from wheels beside core's alone: each meets every requirement of its kind, and a run has both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ["--max_steps", "2", "--sft_steps", "5", "--sft_target_reward", "0", "--scratch_layers", "1", "--scratch_hidden", "64"]
SMALL += ["--scratch_heads", "2", "--scratch_kv_heads", "2", "--rollout_batch_size", "4", "--n_samples_per_prompt", "4"]
SMALL += ["--train_batch_size", "16", "--micro_train_batch_size", "4", "--max_eval_samples", "4", "--eval_every", "0", "--plot_every", "0"]


@pytest.fixture(scope="module")
def python(environment, wheels) -> Path:
    """An environment with core's wheel and those of the examples, and no other plugin."""
    return environment(wheels["lightrft"], wheels["lightrft-ddp"], wheels["lightrft-continuous-batching"])


def run(command: Sequence[str | Path], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(list(command), cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_both_are_found(python, tmp_path):
    done = run([python.parent / "lightrft", "plugins", "--json"], cwd=tmp_path)
    rows = json.loads(done.stdout.splitlines()[-1])["plugins"]
    states = {(row["distribution"], row["kind"], row["name"]): row["state"] for row in rows if row["distribution"] != "lightrft"}
    assert states == {("lightrft-ddp", "strategy", "ddp"): "ok", ("lightrft-continuous-batching", "engine", "continuous"): "ok"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["plugin-ddp", "plugin-continuous-batching"])
def test_an_example_meets_every_requirement(python, tmp_path, name):
    shutil.copytree(EXAMPLES / name / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLES / name / "pyproject.toml", tmp_path)
    done = run([python, "-m", "pytest", "-q"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


@pytest.mark.long
def test_the_demo_runs_on_both_on_two_ranks(python, tmp_path):
    folder = tmp_path / "run"
    by_name = ["--strategy", "ddp", "--engine_type", "continuous", "--nproc-per-node", "2"]
    done = run([python.parent / "lightrft", "demo", *by_name, *SMALL, "--output_dir", str(folder), "--json"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["strategy"], result["engine"], result["world_size"], result["steps"]) == ("ddp", "continuous", 2, 2)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gaps = [row["rollout/logprob_gap"] for row in steps if "rollout/logprob_gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < 1e-3, "the engine samples from the weights that the trainer has, after each of its updates"
