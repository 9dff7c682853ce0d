"""The demo with images learns, on two ranks, and answers by chance where its pictures are blank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Image: Any = pytest.importorskip("PIL.Image", reason="pictures are Pillow's")
CHANCE = 1 / 8


def lightrft(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "lightrft.cli.main", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_the_model_learns_from_what_it_sees(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = lightrft("demo", "--task", "vision", "--output_dir", str(folder))
    assert result["world_size"] == 2
    assert result["accuracy_before"] <= 0.45 and result["accuracy_after"] >= 0.85, result
    for picture in (folder / "data" / "pictures").glob("eval-*.png"):
        Image.new("RGB", Image.open(picture).size, "white").save(picture)
    blanked = lightrft("eval", "--config", str(folder / "config.yaml"), "--model_name_or_path", str(folder / "model"))
    assert abs(blanked["reward"] - CHANCE) < 0.1, blanked["reward"]
