"""Ranks that share sequences and ranks that share an engine need not nest: both count over the world by themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_run import COMPARED, MAIN, curve, quiet_environment, write_recipe

SIZES = {"rollout_batch_size": 12, "n_samples_per_prompt": 2, "train_batch_size": 24, "micro_train_batch_size": 1}


@pytest.mark.long  # six ranks
def test_sequences_of_two_ranks_and_engines_of_three_learn_what_one_process_does(tmp_path: Path) -> None:
    """Ranks 2 and 3 hold one sequence and belong to two engines."""
    recipe = write_recipe(tmp_path, **SIZES)
    for name, words in {
        "six": ["--nproc-per-node", "6", "--sp_size", "2", "--engine_tp_size", "3", "--packing_samples"],
        "one": ["--strategy", "single"],
    }.items():
        command = [sys.executable, "-m", MAIN, "train", "--config", str(recipe), "--output_dir", str(tmp_path / name), *words]
        done = subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    six, one = curve(tmp_path / "six"), curve(tmp_path / "one")
    assert len(six) == 2 * len(COMPARED) and six == pytest.approx(one, rel=1e-5, abs=1e-6)
