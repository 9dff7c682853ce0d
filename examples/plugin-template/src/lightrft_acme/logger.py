"""The logger `acme`: `acme.log` in the log folder, one line of text for each call."""

from __future__ import annotations

from collections.abc import Mapping

from lightrft.run.loggers.base import LoggerSetup


class AcmeLogger:
    """See `Logger`. On rank 0 alone, so it may do what it likes but call the other ranks."""

    def __init__(self, setup: LoggerSetup) -> None:
        self._path = setup.log_dir / "acme.log"
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = " ".join(f"{name}={metrics[name]:.6g}" for name in sorted(metrics))
        self._file.write(f"step {step} {values}\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        """After a resume: lines of later steps go, for they will come again."""
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        self._path.write_text("".join(f"{line}\n" for line in lines if int(line.split()[1]) <= step), encoding="utf-8")

    def close(self) -> None:
        self._file.close()
