"""What `lightrft demo` does beside training. It makes the task's data, and says what came of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lightrft.cli.flags import Flags
from lightrft.cli.settings import checked, split
from lightrft.cli.start import ranks_for, start_ranks
from lightrft.config.checks import strategy_name
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.demo.task import DATA_FOLDER, TASKS, demo_config
from lightrft.distributed.launch import default_nproc
from lightrft.errors import ConfigError, UserError

RANKS = 2
SEED = 0
STRATEGY, ENGINE = "fsdp", "hf"
ARGUMENTS = ("seed", "strategy", "engine_type", "output_dir")
"""Flags that become arguments of the demo's configuration; the others override its recipe."""

METRIC = "exact_match"


def run_demo(flags: Flags) -> dict[str, Any]:
    """Makes the data, trains, and returns the demo's result (see `result_of`).

    Raises:
        ConfigError: all problems of the flags.
        SystemExit: a rank failed; what failed has been printed.
    """
    started = time.monotonic()
    nproc = flags.nproc or ranks_for(flags.settings.get("strategy"), otherwise=min(RANKS, default_nproc(without_cuda=RANKS)))
    config = prepare(flags, world_size=nproc)
    parts = f"strategy {strategy_name(config)}, engine {config.engine_type}"
    print(f"demo: {TASKS[flags.task].title}, seed {config.seed}; world size {nproc}, {parts}; run folder {config.output_dir}", flush=True)
    return result_of(start_ranks(config, mode="train", nproc_per_node=nproc), seconds=time.monotonic() - started)


def prepare(flags: Flags, *, world_size: int) -> Config:
    """The demo's checked configuration, with its data on disk. After an error, a folder that was new is gone again."""
    good, problems = split(flags.settings)
    problems = [*flags.problems, *problems]
    typed = make_config(good)
    folder = Path(typed.output_dir if "output_dir" in good else fresh_folder(Path("runs"))).expanduser()
    config = demo_config(
        run_dir=folder,
        seed=typed.seed if "seed" in good else SEED,
        strategy=typed.strategy or STRATEGY,
        engine=typed.engine_type if "engine_type" in good else ENGINE,
        overrides={name: value for name, value in good.items() if name not in ARGUMENTS},
        task=flags.task,
    )
    new = not folder.exists()
    try:
        if config.overwrite_output_dir or not (folder / "config.yaml").exists():
            TASKS[flags.task].write(folder / DATA_FOLDER, seed=config.seed)
        return checked(config.model_dump(), problems=problems, mode="train", world_size=world_size, typed=flags.settings)
    except OSError as error:
        raise ConfigError([*problems, f"output_dir={str(folder)!r} cannot be written: {error.strerror or error}"]) from error
    except UserError:
        if new:
            shutil.rmtree(folder)
        raise


def fresh_folder(parent: Path) -> Path:
    """`PARENT/demo-DATE-TIME`, with a number behind it where that is taken."""
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = parent / name, 2
    while folder.exists():
        folder, number = parent / f"{name}-{number}", number + 1
    return folder


def result_of(summary: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """The demo's JSON. Accuracy is the greedy exact match on held-out rows (where `--reward` leaves that out, the mean reward)."""
    before, after = summary["eval_before"], summary["eval_after"]
    metric = METRIC if METRIC in after else "reward"
    result = {"accuracy_before": before[metric], "accuracy_after": after[metric], "steps": summary["steps"], "seconds": round(seconds, 1)}
    same = ("seed", "world_size", "strategy", "engine", "run_dir", "model_dir", "peak_memory_gib")
    return {**result, **{name: summary[name] for name in same}, "training_seconds": summary["seconds"]}
