"""One small run as a process of its own, for benchmarks that watch it, kill it or make it hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightrft.testing.tiny import tiny_model_folder

RANKS = 2


def write_recipe(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A recipe of a tiny model and eight prompts, with a reward whose gradients are not 0; all of it in `folder`."""
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "length.py").write_text("def reward(samples):\n    return [float(len(s.completion) % 5) for s in samples]\n")
    settings = {
        "engine_type": "hf", "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "rows.jsonl"),
        "reward": [f"{folder / 'length.py'}:reward"], "rollout_batch_size": 4, "n_samples_per_prompt": 4, "train_batch_size": 16,
        "prompt_max_len": 64, "generate_max_len": 16, "num_episodes": 1000, "learning_rate": 1e-3, "plot_every": 0, "save_every": 1,
        "keep_checkpoints": 2, "loggers": ["jsonl"],
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | dict(changes)), encoding="utf-8")
    return path


def start(words: Sequence[str], *, python: str = sys.executable, log: Path | None = None) -> subprocess.Popen[str]:
    """`python -m WORDS`, quiet; its standard error goes to `log`, else to a pipe."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    with (log or Path(os.devnull)).open("a") as file:
        return subprocess.Popen(
            [python, "-m", *words],
            stdout=subprocess.DEVNULL,
            stderr=file if log else subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )


def train_words(recipe: Path, run: Path, *more: str) -> list[str]:
    """`lightrft train` on `RANKS` ranks."""
    words = ["lightrft.cli.main", "train", "--config", str(recipe), "--output_dir", str(run), "--nproc-per-node", str(RANKS)]
    return [*words, *more]


def ranks_below(launcher: int, program: bytes) -> list[int]:
    """The processes below `launcher` that run `program`, in the order of their starts."""
    found, waiting = [], [launcher]
    while waiting:
        one = waiting.pop()
        try:
            waiting += [int(child) for task in os.listdir(f"/proc/{one}/task") for child in _children(one, task)]
            if one != launcher and program in Path(f"/proc/{one}/cmdline").read_bytes():
                found.append(one)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return sorted(found)


def _children(process: int, task: str) -> list[str]:
    return Path(f"/proc/{process}/task/{task}/children").read_text().split()
