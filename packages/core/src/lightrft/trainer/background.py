"""Work of rank 0 beside the training, one at a time. What it ends with is heard by all ranks when they next ask."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lightrft.distributed.consensus import together
from lightrft.distributed.world import World


class Background:
    """`start`, and before the next one `settle`. An error is not lost: `settle` raises it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._doing = ""

    def start(self, doing: str, work: Callable[[], None]) -> None:
        """`work` runs in a thread of rank 0; it must use no collective. Local."""
        assert self._thread is None, "the last one is not settled"
        self._doing = doing
        if not self._world.is_first:
            return

        def run() -> None:
            try:
                work()
            except Exception as error:  # raised by `settle`
                self._error = error

        self._thread = threading.Thread(target=run, name="lightrft-save", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the end, whatever it is. Local."""
        if self._thread is not None:
            self._thread.join()

    def settle(self) -> None:
        """Waits for the end. Raises what the work did, on all ranks (PeerError on the others). Collective, where something was started."""
        if not self._doing:
            return
        doing, self._doing = self._doing, ""
        together(self._world, doing, self._ended, rank_0_only=True)

    def _ended(self) -> None:
        self.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error
