"""The demo's task: sort six digits: its data, made from a seed, and its settings, from the packaged recipe."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lightrft.config.load import make_config
from lightrft.config.over_recipe import beside_flags
from lightrft.config.schema import Config

NUM_DIGITS = 6
DATA_FOLDER = "data"
RECIPE = "sort.yaml"


def write_data(folder: Path, *, seed: int, num_train: int = 4096, num_eval: int = 256) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `eval.jsonl` (columns prompt and answer) and returns their paths. No row is in both, none is there twice.

    Raises:
        ValueError: more rows than there are rows of six digits.
    """
    if num_train + num_eval > 10**NUM_DIGITS:
        raise ValueError(f"num_train + num_eval = {num_train + num_eval}; there are {10**NUM_DIGITS} rows of {NUM_DIGITS} digits")
    numbers = random.Random(seed).sample(range(10**NUM_DIGITS), num_train + num_eval)
    rows = [make_row([int(digit) for digit in f"{number:0{NUM_DIGITS}d}"]) for number in numbers]
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    for path, part in zip(paths, (rows[:num_train], rows[num_train:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return paths


def make_row(digits: Sequence[int]) -> dict[str, str]:
    """One row: `{"prompt": "3 1 4 1 5 9 =", "answer": "1 1 3 4 5 9"}`."""
    return {"prompt": " ".join(map(str, digits)) + " =", "answer": " ".join(map(str, sorted(digits)))}


def recipe() -> dict[str, Any]:
    """The demo's settings as a mapping, from the file that ships with the package."""
    values: dict[str, Any] = yaml.safe_load(resources.files("lightrft.demo").joinpath(RECIPE).read_text(encoding="utf-8"))
    return values


def demo_config(*, run_dir: Path, seed: int, strategy: str, engine: str, overrides: Mapping[str, Any]) -> Config:
    """The settings of one demo run: the recipe, then these arguments, then `overrides`, which win.

    Its data are `run_dir/data/train.jsonl` and `eval.jsonl`, where `write_data(run_dir / DATA_FOLDER, seed=seed)` puts them.

    Raises:
        ConfigError: an override is unknown or of the wrong type.
    """
    values = beside_flags(recipe(), overrides) | {
        "prompt_data": str(run_dir / DATA_FOLDER / "train.jsonl"),
        "eval_data": str(run_dir / DATA_FOLDER / "eval.jsonl"),
        "output_dir": str(run_dir),
        "seed": seed,
        "engine_type": engine,
    }
    values |= {"fsdp": True} if strategy == "fsdp" else {"strategy": strategy}
    return make_config(values | dict(overrides))
