"""How do metrics get into TensorBoard? As scalars under their names, in the folder `tensorboard` of the logs."""

from __future__ import annotations

from collections.abc import Mapping

from lightrft.run.loggers.base import LoggerSetup


class TensorBoardLogger:
    """Written out after every step, so that a run that is killed keeps what it logged."""

    def __init__(self, setup: LoggerSetup) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(setup.log_dir / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
