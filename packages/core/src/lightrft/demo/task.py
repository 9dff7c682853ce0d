"""The demo's tasks: their data, made from a seed, and their settings, from packaged recipes. The first one: sort six digits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lightrft.config.load import make_config
from lightrft.config.over_recipe import beside_flags
from lightrft.config.schema import Config
from lightrft.demo.calculator import write_products
from lightrft.demo.colours import write_colours
from lightrft.demo.rows import MODEL_FOLDER, write_rows
from lightrft.demo.walks import write_walks

NUM_DIGITS = 6
DATA_FOLDER = "data"


def write_data(folder: Path, *, seed: int, num_train: int = 4096, num_eval: int = 256) -> tuple[Path, Path]:
    """Writes `train.jsonl` and `eval.jsonl` (columns prompt and answer) and returns their paths. No row is in both, none is there twice.

    Raises:
        ValueError: more rows than there are rows of six digits.
    """
    if num_train + num_eval > 10**NUM_DIGITS:
        raise ValueError(f"num_train + num_eval = {num_train + num_eval}; there are {10**NUM_DIGITS} rows of {NUM_DIGITS} digits")
    numbers = random.Random(seed).sample(range(10**NUM_DIGITS), num_train + num_eval)
    rows = [make_row([int(digit) for digit in f"{number:0{NUM_DIGITS}d}"]) for number in numbers]
    return write_rows(folder, rows[:num_train], rows[num_train:])


def make_row(digits: Sequence[int]) -> dict[str, str]:
    """One row: `{"prompt": "3 1 4 1 5 9 =", "answer": "1 1 3 4 5 9"}`."""
    return {"prompt": " ".join(map(str, digits)) + " =", "answer": " ".join(map(str, sorted(digits)))}


@dataclass(frozen=True, kw_only=True)
class Task:
    """`recipe`: its file in this package. `write(folder, seed=...)` puts `train.jsonl` and `eval.jsonl` there and, where `has_model` says
    so, the model's folder.
    """

    title: str
    recipe: str
    write: Callable[..., tuple[Path, Path]]
    has_model: bool = False


TASKS = {
    "sort": Task(title="sort six digits", recipe="sort.yaml", write=write_data),
    "vision": Task(title="say the first letter of a square's colour", recipe="colours.yaml", write=write_colours, has_model=True),
    "tools": Task(title="call a tool for the product of two numbers", recipe="calculator.yaml", write=write_products, has_model=True),
    "gridworld": Task(title="walk to a field of a square", recipe="gridworld.yaml", write=write_walks),
}


def recipe(task: str = "sort") -> dict[str, Any]:
    """A task's settings as a mapping, from the file that ships with the package."""
    file = resources.files("lightrft.demo").joinpath(TASKS[task].recipe)
    values: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return values


def demo_config(*, run_dir: Path, seed: int, strategy: str, engine: str, overrides: Mapping[str, Any], task: str = "sort") -> Config:
    """The settings of one demo run: the recipe, then these arguments, then `overrides`, which win.

    Its data are `run_dir/data/train.jsonl` and `eval.jsonl`, where `TASKS[task].write(run_dir / DATA_FOLDER, seed=seed)` puts them.

    Raises:
        ConfigError: an override is unknown or of the wrong type.
    """
    made = {"model_name_or_path": str(run_dir / DATA_FOLDER / MODEL_FOLDER)} if TASKS[task].has_model else {}
    values = (
        beside_flags(recipe(task), overrides)
        | made
        | {
            "prompt_data": str(run_dir / DATA_FOLDER / "train.jsonl"),
            "eval_data": str(run_dir / DATA_FOLDER / "eval.jsonl"),
            "output_dir": str(run_dir),
            "seed": seed,
            "engine_type": engine,
        }
    )
    values |= {"fsdp": True} if strategy == "fsdp" else {"strategy": strategy}
    return make_config(values | dict(overrides))
