"""The demo of several turns learns with vLLM on two ranks: the begin of its run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_the_model_begins_to_walk_to_the_goal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "lightrft.cli.main", "demo", "--task", "gridworld", "--engine_type", "vllm", "--max_steps", "50"]
    done = subprocess.run([*command, "--json", "--output_dir", str(folder)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["strategy"], result["engine"], result["world_size"]) == ("fsdp", "vllm", 2)
    rows = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "episode/turns" in row]
    rewards = [row["rollout/reward"] for row in rows]
    assert sum(rewards[:3]) / 3 <= 0.3 and sum(rewards[-3:]) / 3 >= 0.42, rewards
    assert all(row["rollout/logprob_gap_max"] < 1e-5 and row["episode/env_error"] == 0.0 for row in rows)
