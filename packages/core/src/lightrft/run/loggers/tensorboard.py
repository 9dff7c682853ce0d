"""Metrics for TensorBoard: scalars under their names, in the folder `tensorboard` of the logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from lightrft.run.loggers.base import LoggerSetup


class TensorBoardLogger:
    """Written out after every step, so that a run that is killed keeps what it logged."""

    def __init__(self, setup: LoggerSetup) -> None:
        self._folder = setup.log_dir / "tensorboard"
        self._open()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(self._folder))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Event files are written anew without later steps: TensorBoard shows a step twice where two files hold it."""
        self._writer.close()
        for path in sorted(self._folder.glob("events.out.tfevents.*")):
            _without_later(path, step)
        self._open()

    def close(self) -> None:
        self._writer.close()


def _without_later(path: Path, step: int) -> None:
    """The file without events of steps after `step`; gone where it has none left."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

    events = []
    with suppress(DecodeError):  # what stands behind a damaged record cannot be told apart
        for data in _records(path):
            events.append((data, Event.FromString(data)))
    kept = [data for data, event in events if not event.HasField("summary") or event.step <= step]
    if not any(event.HasField("summary") and event.step <= step for _, event in events):
        path.unlink()
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        writer = RecordWriter(file)
        for data in kept:
            writer.write(data)
    temporary.replace(path)


def _records(path: Path) -> Iterator[bytes]:
    """The whole records of an event file: length (8 bytes) and its checksum (4), data, its checksum (4). A last half one is left out."""
    content = path.read_bytes()
    at = 0
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        end = at + 12 + length + 4
        if end > len(content):
            return
        yield content[at + 12 : end - 4]
        at = end
