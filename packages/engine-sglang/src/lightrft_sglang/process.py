"""How does a trainer's process live with SGLang's children? They start without its launcher, and a dead one is an exception."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightrft.errors import EngineError
from lightrft_sglang.segments import remove, segments_of

LAUNCHER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
)  # fmt: skip
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")
JOIN_S = 5.0


@contextmanager
def child_environment(more: Mapping[str, str]) -> Iterator[None]:
    """While children start: without torchrun's variables (they would wait for its store for ever), and with these more.

    What SGLang itself changes in this process for its children, variables and the start method of multiprocessing, is put back as well.
    """
    before, method = dict(os.environ), multiprocessing.get_start_method(allow_none=True)
    for name in list(os.environ):
        if name in LAUNCHER or name.startswith(LAUNCHER_PREFIXES):
            del os.environ[name]
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        multiprocessing.set_start_method(method, force=True)


def stay_alive(signum: int, frame: Any) -> None:
    """For the start, where SGLang would kill this process with a child that fails; the start itself raises then. (Pickled: no closure.)"""


class SGLangProcess:
    """One SGLang `Engine` with its children, made and called on the main thread. Signals of the trainer stay the trainer's.

    SGLang 0.5.21 answers the death of a child by killing this process too, or, between two calls, not at all: the next call waits for
    ever. Its handlers are taken out of its event loop, and every call looks at the children first.

    Raises:
        EngineError: it does not start.
    """

    def __init__(self, arguments: Mapping[str, Any], *, environment: Mapping[str, str]) -> None:
        from sglang.srt.entrypoints.engine import Engine

        kept = {number: signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)}
        self._dead = False
        self._engine: Any = None
        ours = segments_of([os.getpid()])
        try:
            with child_environment(environment):
                self._engine = Engine(custom_sigquit_handler=stay_alive, **arguments)
        except BaseException as error:
            end_children_of_failed_start()
            for number, handler in kept.items():
                signal.signal(number, handler or signal.SIG_DFL)
            if not isinstance(error, Exception | SystemExit):
                raise
            raise EngineError(f"SGLang did not start: {type(error).__name__}: {' '.join(str(error).split())}") from error
        self._segments = segments_of([os.getpid(), *self._pids()]) - ours
        self._sigquit = kept[signal.SIGQUIT] or signal.SIG_DFL
        self._engine.loop.run_until_complete(self._take_signals_back())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, kept[number] or signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, self._on_sigquit)

    @property
    def children(self) -> list[Any]:
        """Its schedulers and detokenizer, as multiprocessing processes."""
        # A private name of 0.5.21: the public ones give no handle on the children, and without one their death is not seen.
        return list(self._engine.tokenizer_manager._subprocess_watchdog._processes)

    def call(self, name: str, **arguments: Any) -> Any:
        """`engine.name(**arguments)`.

        Raises:
            EngineError: a child has died, before or while.
        """
        self._check(name)
        try:
            return getattr(self._engine, name)(**arguments)
        except RuntimeError as error:
            if self._dead or not self.alive:
                raise EngineError(f"SGLang: a scheduler died during {name}") from error
            raise

    @property
    def alive(self) -> bool:
        """Whether all children live."""
        return self._engine is not None and not self._dead and all(process.is_alive() for process in self.children)

    def shutdown(self) -> None:
        """Ends the children and waits for them. Idempotent."""
        if self._engine is None:
            return
        children = self.children
        self._segments |= segments_of(self._pids())
        engine, self._engine = self._engine, None
        engine.shutdown()
        for process in children:
            process.join(JOIN_S)
        remove(self._segments)
        self._close_loop(engine.loop)
        signal.signal(signal.SIGQUIT, self._sigquit)

    def _pids(self) -> list[int]:
        return [process.pid for process in self.children]

    async def _take_signals_back(self) -> None:
        # Inside the running loop: uvloop forgets to remove a handler while it stands still.
        self._engine.tokenizer_manager.auto_create_handle_loop()
        for number in (signal.SIGTERM, signal.SIGQUIT):
            self._engine.loop.remove_signal_handler(number)

    def _on_sigquit(self, signum: int, frame: Any) -> None:
        """What a scheduler sends when it fails."""
        self._dead = True
        if self._engine is not None and self._engine.loop.is_running():
            self._engine.loop.call_soon_threadsafe(self._engine.loop.stop)

    def _check(self, name: str) -> None:
        if not self.alive:
            self._dead = True
            raise EngineError(f"SGLang: a scheduler has died, {name} is not possible any more")

    @staticmethod
    def _close_loop(loop: Any) -> None:
        if loop.is_closed():
            return
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def end_children_of_failed_start() -> None:
    """A start that fails leaves schedulers behind that nobody holds."""
    from sglang.srt.utils import kill_process_tree

    kill_process_tree(os.getpid(), include_parent=False)
