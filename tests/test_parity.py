"""Is the update of every backend that of one process? The whole table of `benchmarks/parity.py`, as the command prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = Path(__file__).resolve().parents[1] / "benchmarks/parity.py"
BACKENDS, RANKS, CASES = 8, 3, 4


def test_every_row_is_within_its_bound():
    done = subprocess.run([sys.executable, str(COMMAND), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert verdict["ok"] and len(verdict["rows"]) == BACKENDS * RANKS * CASES
    assert verdict["bound"] == {"gradients": 1e-6, "norms": 1e-5, "parameters": 3e-5}
    for row in verdict["rows"]:
        assert all(row[name] <= bound for name, bound in verdict["bound"].items()), row
    far = [row["gradients"] for row in verdict["rows"] if row["ranks"] > 1]
    assert max(far) > 0  # other sums in another order: equal bits everywhere would mean that nothing was distributed
