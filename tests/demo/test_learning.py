"""The demo learns. The real command on two ranks, a third of its steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAX_STEPS = 40


@pytest.mark.slow
def test_the_accuracy_rises(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "lightrft.cli.main", "demo", "--json", "--output_dir", str(folder), "--max_steps", str(MAX_STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["strategy"], result["engine"], result["world_size"], result["steps"]) == ("fsdp", "hf", 2, MAX_STEPS)
    assert 0.3 <= result["accuracy_before"] <= 0.45
    assert result["accuracy_after"] >= result["accuracy_before"] + 0.2
    assert json.loads((folder / "summary.json").read_text())["warnings"] == [], "a run without a fault is no reason for a warning"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["rollout/logprob_gap"] for row in rows if "rollout/logprob_gap" in row]
    assert len(gaps) == MAX_STEPS
    assert max(gaps) < 1e-5, "the engine holds the actor in every rollout"
    for name in ("model/model.safetensors", "config.yaml", "summary.json", "plots/curves.png", "plots/lengths-000040.png"):
        assert (folder / name).is_file(), name
