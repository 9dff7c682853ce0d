"""A run is told to save and end by SIGTERM to a rank, or by SIGTERM, SIGINT or SIGHUP to its launcher, which leaves the ranks a note."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightrft.distributed.failure import FAILURE_DIR

CAN_SAVE, STOP = "can-save", "stop"
"""Files in the launcher's folder: a rank will save when it is told to stop; it is told."""


class StopRequests:
    """In a rank, while `listening`: whether SIGTERM has come to it or to its launcher. Local."""

    def __init__(self) -> None:
        folder = os.environ.get(FAILURE_DIR)
        self._folder = Path(folder) if folder else None
        self._signalled = False

    @property
    def asked(self) -> bool:
        """Whether this rank was told to stop."""
        return self._signalled or (self._folder is not None and (self._folder / STOP).exists())

    @property
    def signal(self) -> str:
        """The name of the signal that came to the launcher, else SIGTERM."""
        note = self._folder / STOP if self._folder is not None else None
        return (note.read_text() if note is not None and note.exists() else "") or "SIGTERM"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM only sets `asked` within. In another thread than the main one nothing is changed: Python has no handlers there."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._take)
        if self._folder is not None:
            (self._folder / CAN_SAVE).touch()
        try:
            yield
        finally:
            if self._folder is not None:
                (self._folder / CAN_SAVE).unlink(missing_ok=True)
            signal.signal(signal.SIGTERM, before)

    def _take(self, number: int, frame: Any) -> None:
        self._signalled = True


def ask_to_stop(folder: Path, name: str) -> bool:
    """For the launcher, which got the signal `name`: tells the ranks to save and end. False where they do not listen, or were told."""
    if not (folder / CAN_SAVE).exists() or (folder / STOP).exists():
        return False
    temporary = folder / f".{STOP}"
    temporary.write_text(name)
    temporary.replace(folder / STOP)
    return True
