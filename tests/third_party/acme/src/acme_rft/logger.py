"""Where does a third party log? Into a file of its own."""

from __future__ import annotations

from collections.abc import Mapping

from lightrft.trainer.loggers.base import LoggerSetup


class AcmeLogger:
    def __init__(self, setup: LoggerSetup) -> None:
        self._path = setup.log_dir / "acme.log"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{step} {' '.join(sorted(metrics))}\n")

    def close(self) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write("closed\n")
