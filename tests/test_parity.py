"""The update of every backend is that of one process. The whole table of `benchmarks/parity.py`, as the command prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[1] / "benchmarks/parity.py"
EXACT = {"gradients": 1e-6, "norms": 1e-5, "parameters": 3e-5}
ALWAYS = {"fsdp", "zero 0", "zero 1", "zero 2", "zero 3"}


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param((2,), marks=pytest.mark.slow, id="2"),
        pytest.param((1, 2, 4), marks=pytest.mark.long, id="all"),  # 1 and 4 ranks are in the backends' own tests, daily
    ],
)
def test_every_row_is_within_its_bound(ranks):
    command = [sys.executable, str(COMMAND), "--json", "--ranks", *map(str, ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    rows = verdict["rows"]
    assert verdict["ok"] and {row["ranks"] for row in rows} == set(ranks)
    for backend in ALWAYS:
        cases = {row["case"] for row in rows if row["backend"] == backend}
        assert cases == {"accumulation 1", "accumulation 3", "one rank empty", "clipping", "tied weights", "LoRA", "actor and critic"}
        assert all(row["bound"] == EXACT for row in rows if row["backend"] == backend)
    for row in rows:
        assert all(row[name] <= bound for name, bound in row["bound"].items()), row
    far = [row["gradients"] for row in rows if row["ranks"] > 1]
    assert max(far) > 0  # other sums in another order: equal bits everywhere would mean that nothing was distributed
