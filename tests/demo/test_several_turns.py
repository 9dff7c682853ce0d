"""The demos of several turns learn, on two ranks: to call a tool, and to walk to a field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.parametrize("task", ["tools", "gridworld"])
def test_the_model_learns_over_several_turns(tmp_path: Path, task: str) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "lightrft.cli.main", "demo", "--task", task, "--json", "--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["strategy"], result["engine"], result["world_size"]) == ("fsdp", "hf", 2)
    assert result["accuracy_before"] <= 0.4 and result["accuracy_after"] >= 0.85, result
    rows = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "episode/turns" in row]
    rewards = [row["rollout/reward"] for row in rows]
    assert sum(rewards[:3]) / 3 <= 0.4 and sum(rewards[-3:]) / 3 >= 0.85, rewards
    # Float32 alone is up to 5e-5 from float64 on single tokens of what these models have learnt; a shifted one is nats off.
    assert all(row["rollout/logprob_gap"] < 1e-6 and row["rollout/logprob_gap_max"] < 1e-4 for row in rows)
    assert all(row["episode/env_error"] == 0.0 for row in rows)
