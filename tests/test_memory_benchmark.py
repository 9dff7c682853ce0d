"""The benchmark of memory finds that no logits are held, and the same numbers on all paths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[1] / "benchmarks/memory.py"
SMALL = ["--device", "cpu", "--dtype", "float32", "--vocab", "32768", "--hidden", "64", "--tokens", "2048", "--rounds", "1", "--entropy"]


@pytest.mark.long  # the peak of a whole process, which other work on the machine disturbs: alone, by `make memory` or `make test-long`
def test_the_fused_path_holds_no_logits():
    done = subprocess.run([sys.executable, str(COMMAND), *SMALL, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: on a busy machine the time may be beyond its bound
    lines = done.stdout.splitlines()
    paths = json.loads(lines[-1])["paths"]
    assert set(paths) == {"logits", "plain", "fused"}
    logits = 2048 * 32768 * 4
    assert paths["logits"]["peak"] > 3 * logits
    assert paths["fused"]["peak"] < logits and paths["fused"]["memory"] >= 5
    for line in lines[1:4]:
        assert all(float(cell) <= 1e-5 for cell in line.split()[5:7]), line
