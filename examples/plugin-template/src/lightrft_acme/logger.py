"""Where does `acme` log? Into `acme.log` of the log folder, one line of text for each call."""

from __future__ import annotations

from collections.abc import Mapping

from lightrft.run.loggers.base import LoggerSetup


class AcmeLogger:
    """See `Logger`. On rank 0 alone, so it may do what it likes but call the other ranks."""

    def __init__(self, setup: LoggerSetup) -> None:
        self._file = (setup.log_dir / "acme.log").open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = " ".join(f"{name}={metrics[name]:.6g}" for name in sorted(metrics))
        self._file.write(f"step {step} {values}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
