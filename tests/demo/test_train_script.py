"""The guide's script runs as the guide runs it, by itself on two ranks, and refuses bad input before any rank starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightrft.demo.task import write_data

SCRIPT = Path(__file__).resolve().parents[2] / "examples/train.py"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    train, held_out = write_data(tmp_path / "data", seed=0, num_train=8, num_eval=4)
    given = {
        "engine_type": "hf",
        "scratch_tokenizer": "char",
        "scratch_layers": 1,
        "scratch_hidden": 32,
        "scratch_heads": 2,
        "scratch_kv_heads": 2,
        "prompt_data": train,
        "eval_data": held_out,
        "generate_max_len": 4,
        "rollout_batch_size": 4,
        "n_samples_per_prompt": 2,
        "train_batch_size": 8,
        "micro_train_batch_size": 2,
        "kl_coef": 0.1,
        "plot_every": 0,
        "output_dir": tmp_path / "run",
    }
    return ["--fsdp", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def test_it_trains_on_two_ranks(flags, tmp_path):
    done = run(*flags, "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["world_size"], summary["strategy"], summary["engine"], summary["steps"]) == (2, "fsdp", "hf", 2)
    assert "exact_match" in summary["eval_after"]
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_all_problems_at_once_before_any_rank(flags, tmp_path):
    done = run(*flags, "--nproc-per-node", "2", "--micro_train_batch_size", "3", "--reward", "exact_mtch")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: train_batch_size=8 is not divisible by micro_train_batch_size x world size")
    assert lines[1].startswith("error: unknown reward 'exact_mtch'; did you mean 'exact_match'?")
    assert not (tmp_path / "run").exists()
