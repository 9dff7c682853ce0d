"""The two files of a demo's data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL_FOLDER = "model"
"""Of a task that makes its model: its name in the folder of the data."""


def write_rows(folder: Path, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `eval.jsonl` into the folder, which is made, and returns the two paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    for path, rows in zip(paths, (train, held_out), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths
