"""Metrics for trackio, under their names; `TRACKIO_DIR`, `TRACKIO_SPACE_ID` and the other variables are trackio's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.run.loggers.base import SAMPLE_COLUMNS, LoggerSetup, kept_id, run_name, sample_table, say_it_keeps

ID_FILE = "trackio-id.txt"
"""In the log folder: a run that is resumed goes on as the same one."""


class TrackioLogger:
    """The project is `TRACKIO_PROJECT`, else `lightrft`; the run is named by its folder and an id, since trackio tells runs apart by name.
    `trackio show` opens the dashboard; no network is needed.
    """

    def __init__(self, setup: LoggerSetup) -> None:
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "lightrft"),
            name=f"{run_name(setup)}-{kept_id(setup.log_dir / ID_FILE)}",
            resume="allow",
            config=setup.config.model_dump(),
            embed=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table `samples` of each rollout."""
        import trackio

        table = trackio.Table(columns=[*SAMPLE_COLUMNS], data=sample_table(rows))
        self._run.log({"samples": table}, step=step)

    def rewind(self, step: int) -> None:
        say_it_keeps("trackio", step)

    def close(self) -> None:
        self._run.finish()
