"""The notebook runs from its top to its bottom, in an empty folder, and its reward rises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "examples/notebooks/first_run.ipynb"


def test_what_it_shows_is_small() -> None:
    cells = [cell for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}, "the table and the curve are there, and no error"
    assert PAGE.stat().st_size < 40_000


def test_its_cells_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the last curve is drawn by matplotlib")
    cells = [cell for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    env = os.environ | {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    table = done.stdout.split("step  reward  length  entropy\n")[1]
    rewards = [float(line.split()[1]) for line in table.splitlines() if re.match(r"\s+\d+  ", line)]
    assert len(rewards) == 7 and rewards[0] < 0.3 and rewards[-1] > 0.9
