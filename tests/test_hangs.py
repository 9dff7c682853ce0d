"""A rank that stops moving is named by the others, with its phase and place, whatever it hangs in. Real ranks, the real loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightrft.testing.tiny import tiny_model_folder

LIMIT_S, WITHIN_S = 12, 60
SCRIPT = """
import os, pkgutil, signal, sys, time
from pathlib import Path
from lightrft.config.load import make_config, read_recipe
from lightrft.distributed.failure import reporting_failures

where, name, rank, how, recipe, stamp = sys.argv[1:]
before = None


def planted(*args, **kwargs):
    Path(stamp).write_text(str(time.time()))
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "sleep":
        time.sleep(10000)
    if how == "spin":
        while True:
            time.monotonic()
    if how == "lock":  # foreign code that keeps Python's lock
        import ctypes
        ctypes.PyDLL(None).sleep(10000)
    if how == "other":  # a collective that nobody else is in
        import torch, torch.distributed as dist
        dist.broadcast(torch.zeros(1), src=0)
    if how == "slow":
        time.sleep(20)
    return before(*args, **kwargs)


with reporting_failures():
    from lightrft.trainer.run import train

    holder = pkgutil.resolve_name(where)
    before = getattr(holder, name)
    if os.environ["RANK"] == rank:
        setattr(holder, name, planted)
    train(make_config(read_recipe(recipe)))
"""
LAUNCH = """
import sys
from lightrft.distributed.launch import launch
sys.exit(launch([sys.executable, *sys.argv[1:]], nproc_per_node=2).exit_code)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "fsdp": True, "compile": "no", "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 2,
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "data.jsonl"),
        "output_dir": str(folder / "run"), "overwrite_output_dir": True, "save_every": 1,
        "prompt_max_len": 16, "generate_max_len": 4, "rollout_batch_size": 4, "n_samples_per_prompt": 2,
        "train_batch_size": 8, "micro_train_batch_size": 2, "heartbeat_timeout_s": LIMIT_S, "hang_timeout_s": 40,
        "phase_timeouts": [f"{phase}={LIMIT_S}" for phase in ("rollout", "reward", "logprob", "update", "sync", "save", "finish")],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def run(recipe: Path, tmp_path: Path, where: str, name: str, rank: int, how: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """How it ended, and how many seconds after the planted hang began."""
    script, stamp = tmp_path / "script.py", tmp_path / "stamp"
    script.write_text(SCRIPT)
    command = [sys.executable, "-c", LAUNCH, str(script), where, name, str(rank), how, str(recipe), str(stamp)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    return done, time.time() - float(stamp.read_text())


def hang_of(done: subprocess.CompletedProcess[str]) -> str:
    return next((line for line in done.stderr.splitlines() if line.startswith("the run hangs: ")), done.stderr)


@pytest.mark.parametrize(
    ("where", "name", "rank", "how", "phase"),
    [
        ("lightrft_fsdp.strategy.FSDPV2Strategy", "_backward", 1, "stop", "update"),
        pytest.param("lightrft.rewards.exact_match", "required_answer", 0, "spin", "reward", marks=pytest.mark.long),
        pytest.param("lightrft.engine.hf.HFEngine", "update_weights", 1, "lock", "sync", marks=pytest.mark.long),
        pytest.param("lightrft.strategy.hf_export", "_write_shards", 0, "sleep", "finish", marks=pytest.mark.long),
    ],
)
def test_the_rank_that_hangs_is_named(recipe: Path, tmp_path: Path, where: str, name: str, rank: int, how: str, phase: str) -> None:
    done, seconds = run(recipe, tmp_path, where, name, rank, how)
    first = hang_of(done)
    assert done.returncode == 1, done.stderr
    assert re.match(rf"the run hangs: rank {rank} .*phase {phase} of step \d+", first), done.stderr
    assert f"rank {1 - rank} has" not in first and f"rank {1 - rank} (" not in first
    assert "--- rank 0 ---" in done.stderr and "--- rank 1 ---" in done.stderr and "most recent call last" in done.stderr
    assert re.search(r"last collectives, by torch's flight recorder:\n(  gloo:.*\n)*  gloo:\w+ \d+ of group ", done.stderr), done.stderr
    assert seconds < LIMIT_S + WITHIN_S


@pytest.mark.long
def test_two_ranks_in_different_collectives_are_both_named(recipe: Path, tmp_path: Path) -> None:
    done, seconds = run(recipe, tmp_path, "lightrft.experience.pipeline.ExperienceMaker", "reward", 1, "other")
    first = hang_of(done)
    assert "ranks wait in different collectives" in first and "rank 0:" in first and "rank 1:" in first, done.stderr
    assert "broadcast" in first and seconds < LIMIT_S + WITHIN_S


@pytest.mark.long
def test_a_slow_first_step_is_no_hang(recipe: Path, tmp_path: Path) -> None:
    patient = tmp_path / "recipe.yaml"
    patient.write_text(
        json.dumps(json.loads(recipe.read_text()) | {"phase_timeouts": [], "output_dir": str(tmp_path / "run"), "max_steps": 1})
    )
    done, _ = run(patient, tmp_path, "lightrft.engine.hf.HFEngine", "generate", 1, "slow")
    assert done.returncode == 0, done.stderr
