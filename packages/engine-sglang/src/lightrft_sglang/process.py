"""SGLang's child processes in a trainer's process. They start without its launcher, and a dead one is an exception."""

from __future__ import annotations

import asyncio
import atexit
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import zmq

from lightrft.errors import EngineError
from lightrft_sglang.segments import entrust, everything, remove, segments_of, take_back, unused
from lightrft_sglang.with_parent import children_end_with_us

LAUNCHER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
)  # fmt: skip
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")
JOIN_S = 5.0
ABORT_EVERY_S = 0.05


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
    """One SGLang `Engine` with its children, made and called on the main thread. Signals, and other children, of the trainer stay its own.

    SGLang 0.5.21 answers the death of a child by killing this process too, or, between two calls, not at all: the next call waits for
    ever. Its handlers are taken out of its event loop, which watches the children instead. And its own shutdown kills every child that
    this process has; only those that came with it end here.

    Raises:
        EngineError: it does not start; nothing of it is left.
    """

    def __init__(self, arguments: Mapping[str, Any], *, environment: Mapping[str, str]) -> None:
        from sglang.srt.entrypoints.engine import Engine

        self._kept = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)}
        self._failed = False
        self._engine: Any = None
        self._loop = asyncio.new_event_loop()
        self._begun: set[asyncio.Task[None]] = set()
        others, contexts, ours = set(multiprocessing.active_children()), _contexts(), segments_of([os.getpid()])
        there = everything()
        error: BaseException | None = None
        try:
            with child_environment(environment), children_end_with_us():
                asyncio.set_event_loop(self._loop)
                self._engine = Engine(custom_sigquit_handler=stay_alive, **arguments)
        except (Exception, SystemExit) as caught:
            error = caught
        self.children = sorted((c for c in multiprocessing.active_children() if c not in others), key=lambda c: c.pid or 0)
        self._contexts = [context for context in _contexts() if context not in contexts]
        self._segments = segments_of([os.getpid(), *self.pids]) - ours
        self._entrusted = entrust(self._segments)  # a trainer that is killed cannot remove them itself
        if error is not None:
            self.shutdown()
            remove(unused(everything() - there))  # of schedulers that are gone already
            raise EngineError(f"SGLang did not start: {type(error).__name__}: {' '.join(str(error).split())}") from error
        self._adopt()
        atexit.register(self.shutdown)

    @property
    def pids(self) -> list[int]:
        """Of its children, schedulers first."""
        return [child.pid for child in self.children if child.pid is not None]

    @property
    def page_size(self) -> int:
        """Tokens in one page of its cache, as it settled it at its start."""
        return int(self._engine.server_args.page_size or 1)

    @property
    def alive(self) -> bool:
        """Whether all children live, and none has reported a failure."""
        return not self._failed and all(child.is_alive() for child in self.children)

    def call(self, name: str, **arguments: Any) -> Any:
        """`engine.name(**arguments)`.

        Raises:
            EngineError: a child has died, before or while.
        """
        with self._guarded(name):
            return getattr(self._engine, name)(**arguments)

    def call_each(self, name: str, arguments: Sequence[Mapping[str, Any]], ended: Callable[[int, Any], None]) -> None:
        """`await engine.name(**a)` for all of them at once; `ended(i, answer)` as each comes. An error is raised when all have ended.

        Raises:
            EngineError: a child has died, before or while.
        """

        async def one(index: int, given: Mapping[str, Any]) -> None:
            ended(index, await getattr(self._engine, name)(**given))

        async def every() -> list[BaseException | None]:
            return await asyncio.gather(*(one(i, given) for i, given in enumerate(arguments)), return_exceptions=True)

        with self._guarded(name):
            for error in self._loop.run_until_complete(every()):
                if error is not None:
                    raise error

    def begin_each(self, name: str, arguments: Sequence[Mapping[str, Any]], ended: Callable[[int, Any], None]) -> None:
        """As `call_each`, and does not wait: `look` goes on with them, and with those that were begun before."""

        async def one(index: int, given: Mapping[str, Any]) -> None:
            ended(index, await getattr(self._engine, name)(**given))

        self._begun |= {self._loop.create_task(one(index, given)) for index, given in enumerate(arguments)}

    def look(self, wait_s: float) -> None:
        """Waits for the first of what was begun to end, for `wait_s` at most. Raises as `call_each`."""
        if not self._begun:
            return
        with self._guarded("a look at requests"):
            ended, self._begun = self._loop.run_until_complete(
                asyncio.wait(self._begun, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            )
        for error in [task.exception() for task in ended]:
            if error is not None:
                raise error

    def forget(self) -> None:
        """Ends what was begun and has not ended. Raises as `call_each`."""
        while self._begun:
            with self._guarded("an abort"):
                # Again and again: one that is on its way to the scheduler is not there to be aborted yet.
                self._engine.tokenizer_manager.abort_request(abort_all=True)
                _, self._begun = self._loop.run_until_complete(asyncio.wait(self._begun, timeout=ABORT_EVERY_S))

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        if not self.alive:
            raise EngineError(f"SGLang: a scheduler has died, {name} is not possible any more")
        try:
            yield
        except RuntimeError as error:  # asyncio's, of a loop that was stopped
            if not self.alive:
                raise EngineError(f"SGLang: a scheduler died during {name}") from error
            raise

    def shutdown(self) -> None:
        """Ends the children, waits for them and removes their shared memory. Idempotent."""
        atexit.unregister(self.shutdown)
        if self._loop.is_closed():
            return
        self._segments |= segments_of(self.pids)
        for child in self.children:
            self._loop.remove_reader(child.sentinel)
            child.kill()
        for child in self.children:
            child.join(JOIN_S)
        remove(self._segments)
        take_back(self._entrusted)
        self._close_loop()
        if self._engine is not None:
            atexit.unregister(self._engine.shutdown)
            self._engine = None
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _adopt(self) -> None:
        """Takes over from SGLang who hears of signals and of children that end."""
        # Private names of 0.5.21: its handlers are set in the first call, and the thread that watches the children cannot be asked else.
        manager = self._engine.tokenizer_manager

        async def create_and_take() -> None:  # in the running loop: uvloop forgets to remove a handler while it stands still
            manager.auto_create_handle_loop()
            for number in (signal.SIGTERM, signal.SIGQUIT):
                self._loop.remove_signal_handler(number)

        self._loop.run_until_complete(create_and_take())
        manager._subprocess_watchdog.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._kept[number])
        signal.signal(signal.SIGQUIT, self._on_sigquit)
        for child in self.children:
            self._loop.add_reader(child.sentinel, self._on_end, child)

    def _on_end(self, child: Any) -> None:
        child.join(JOIN_S)  # its sentinel speaks a moment before it can be asked
        self._loop.stop()

    def _on_sigquit(self, signum: int, frame: Any) -> None:
        """How a scheduler says that it failed, shortly before it ends."""
        self._failed = True
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _close_loop(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        while tasks := asyncio.all_tasks(self._loop):
            with suppress(RuntimeError):  # a stop that nobody waited for ends one run
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for context in self._contexts:  # at once: what a dead scheduler never took would hold up whoever collects the context
            context.destroy(linger=0)
        self._loop.close()


def _contexts() -> list[Any]:
    """Every ZeroMQ context of this process: SGLang has its own deep inside its objects."""
    return [found for found in gc.get_objects() if issubclass(type(found), zmq.Context)]
