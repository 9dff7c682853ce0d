"""Metrics for machines: one JSON object per line, on disk as soon as it is logged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from lightrft.run.loggers.base import LoggerSetup

FILE_NAME = "metrics.jsonl"


class JsonlLogger:
    """Appends to `metrics.jsonl` in the log folder. A number that JSON does not have (NaN, infinity) becomes null."""

    def __init__(self, setup: LoggerSetup) -> None:
        self._file = (setup.log_dir / FILE_NAME).open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(as_line(step, metrics))
        self._file.flush()

    def rewind(self, step: int) -> None:
        """Nothing to do: the run itself writes this file as it was (`run.rewind`)."""

    def close(self) -> None:
        self._file.close()


def as_line(step: int, metrics: Mapping[str, float]) -> str:
    """One line of the file."""
    return json.dumps({"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}) + "\n"
