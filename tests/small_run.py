"""A run that is small enough to be started again and again. A tiny model's folder, eight prompts, two steps; what came of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from lightrft.testing.tiny import tiny_model_folder

MAIN = "lightrft.cli.main"
COMPARED = ("rollout/reward", "train/loss", "train/grad_norm", "train/ratio")


def write_recipe(folder: Path, **changes: Any) -> Path:
    """The recipe's path; it reads and writes in `folder` only."""
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "length.py").write_text("def reward(samples):\n    return [float(len(s.completion) % 5) for s in samples]\n")
    settings = {
        "strategy": "fsdp",
        "engine_type": "hf",
        "model_name_or_path": str(folder / "model"),
        "prompt_data": str(folder / "rows.jsonl"),
        "eval_data": str(folder / "rows.jsonl"),
        "output_dir": str(folder / "run"),
        "reward": [f"{folder / 'length.py'}:reward"],
        "rollout_batch_size": 4,
        "n_samples_per_prompt": 4,
        "train_batch_size": 16,
        "prompt_max_len": 64,
        "generate_max_len": 8,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "plot_every": 0,
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return recipe


def curve(folder: Path) -> list[float]:
    """What the updates of a run did: `COMPARED` of each step, one after the other."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if COMPARED[0] in row for name in COMPARED]


def quiet_environment() -> dict[str, str]:
    """One thread for each rank, and no question to a name service that may be down."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PET_LOCAL_ADDR": "127.0.0.1"}
