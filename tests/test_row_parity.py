"""Packed rows, rows that ranks share and the fused head learn what one process learns from padded rows: `benchmarks/row_parity.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightrft.testing.row_parity import MODELS, VARIANTS

COMMAND = Path(__file__).resolve().parents[1] / "benchmarks/row_parity.py"
EXACT = {"gradients": 1e-6, "norms": 1e-5, "parameters": 3e-5}
ROUNDED = {"gradients": 5e-2, "norms": 1e-2, "parameters": 6e-3}


def verdict(*arguments: str, bound: dict[str, float] = EXACT) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(COMMAND), *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] and found["bound"] == bound
    return found


def test_two_ranks_with_fsdp():
    found = verdict("--ranks", "2", "--backends", "fsdp", "--models", "gemma2")
    assert {row["rows"] for row in found["rows"]} == set(VARIANTS) - {"sp 4"}


@pytest.mark.long
def test_every_row_is_within_its_bound():
    rows = verdict()["rows"]
    asked = {(row["backend"], row["rows"], row["model"]) for row in rows}
    assert asked == {(b, v, m) for b in ("fsdp", "zero 1", "zero 2", "zero 3") for v in VARIANTS for m in MODELS}
    assert max(row["gradients"] for row in rows) > 0  # equal bits everywhere would mean that nothing was packed or shared


@pytest.mark.long
def test_every_row_in_bfloat16_is_within_its_bound():
    rows = verdict("--dtype", "bfloat16", bound=ROUNDED)["rows"]
    assert len(rows) == 4 * len(VARIANTS) * len(MODELS)
    assert max(row["gradients"] for row in rows) > 1e-3  # what float32 would not show
