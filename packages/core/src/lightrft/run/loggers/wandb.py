"""Metrics for Weights & Biases, under their names; `WANDB_PROJECT`, `WANDB_MODE` and the other variables are wandb's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.run.loggers.base import SAMPLE_COLUMNS, LoggerSetup, kept_id, run_name, sample_table

ID_FILE = "wandb-id.txt"
"""In the log folder: a run that is resumed goes on as the same one."""


class WandbLogger:
    """The project is `WANDB_PROJECT`, else `lightrft`; the run is named by its folder; `WANDB_MODE=offline` needs no network."""

    def __init__(self, setup: LoggerSetup) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lightrft"),
            name=run_name(setup),
            id=kept_id(setup.log_dir / ID_FILE),
            resume="allow",
            dir=str(setup.log_dir),
            config=setup.config.model_dump(),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table `samples` of each rollout."""
        import wandb

        table = wandb.Table(columns=[*SAMPLE_COLUMNS], data=sample_table(rows))
        self._run.log({"samples": table}, step=step)

    def rewind(self, step: int) -> None:
        """wandb takes no step twice, and cannot take one back: of steps that the stopped run has logged, its values stay."""
        known = int(getattr(self._run, "step", 0))
        if known > step + 1:
            print(f"resume: wandb keeps the stopped run's values of steps {step + 1} to {known - 1}, which it cannot take back", flush=True)

    def close(self) -> None:
        self._run.finish()
