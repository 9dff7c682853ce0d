"""Metrics for SwanLab, under their names; `SWANLAB_MODE`, `SWANLAB_API_KEY` and the other variables are SwanLab's own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightrft.run.loggers.base import LoggerSetup, kept_id, run_name, say_it_keeps

ID_FILE = "swanlab-id.txt"
"""In the log folder: a run that is resumed goes on as the same one."""


class SwanlabLogger:
    """The project is `SWANLAB_PROJECT`, else `lightrft`; the run is named by its folder; `SWANLAB_MODE=offline` needs no network and
    writes into the folder `swanlab` of the logs.
    """

    def __init__(self, setup: LoggerSetup) -> None:
        import swanlab

        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", "lightrft"),
            name=run_name(setup),
            id=kept_id(setup.log_dir / ID_FILE),
            resume="allow",
            log_dir=str(setup.log_dir / "swanlab"),
            config=setup.config.model_dump(),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        say_it_keeps("SwanLab", step)

    def close(self) -> None:
        self._run.finish()
