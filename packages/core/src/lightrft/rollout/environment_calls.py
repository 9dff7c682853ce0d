"""Calls of environments, many at a time: plain functions in threads, `async` ones in one event loop; each has a time limit. No torch."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Outcome:
    """What a call returned, or what went wrong: its exception, a TimeoutError where it took too long."""

    value: Any = None
    error: BaseException | None = None


Done = tuple[int, Outcome, float]
"""The number of a call, its outcome, and when it had it."""


class EnvironmentCalls:
    """Runs lists of calls. `timeout_s`: the limit of one call, from its own begin; `concurrency`: how many run at a time. Local.

    A plain function that takes too long cannot be stopped: its thread goes on, as a daemon, and what it returns later is forgotten. Calls
    see the context variables of who runs them.
    """

    def __init__(self, *, timeout_s: float, concurrency: int) -> None:
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcomes, in the order of the calls. Raises nothing that a call raises."""
        found: dict[int, Outcome] = {}
        done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        waiting = deque(range(len(calls)))
        until: dict[int, float] = {}
        while waiting or until:
            while waiting and len(until) < self._concurrency:
                number = waiting.popleft()
                until[number] = time.monotonic() + self._timeout_s
                work = partial(contextvars.copy_context().run, self._call, calls[number], number, done)
                threading.Thread(target=work, name="lightrft-environment", daemon=True).start()
            try:
                number, outcome, at = done.get(timeout=max(min(until.values()) - time.monotonic(), 0.0))
                limit = until.pop(number, None)
                if limit is not None:
                    found[number] = outcome if at <= limit else self._late()
            except queue.Empty:
                for number in [number for number, limit in until.items() if limit <= time.monotonic()]:
                    del until[number]
                    found[number] = self._late()
        return [found[number] for number in range(len(calls))]

    def close(self) -> None:
        """Ends the event loop, where one was begun. Idempotent."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _late(self) -> Outcome:
        return Outcome(error=TimeoutError(f"did not return within {self._timeout_s:g} s (environment_timeout_s)"))

    def _call(self, call: Call, number: int, done: queue.SimpleQueue[Done]) -> None:
        try:
            value = call()
            if inspect.isawaitable(value):
                value = asyncio.run_coroutine_threadsafe(_limited(value, self._timeout_s), self._running()).result()
            outcome = Outcome(value)
        except BaseException as error:  # an environment may also exit: its episode ends, not the run
            outcome = Outcome(error=error)
        done.put((number, outcome, time.monotonic()))

    def _running(self) -> asyncio.AbstractEventLoop:
        """The event loop of all `async` calls: what one of them opens, a session or a socket, the next one may use."""
        with _STARTING:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=_run_forever, args=(loop,), name="lightrft-environment-loop", daemon=True).start()
                self._loop = loop
        return self._loop


_STARTING = threading.Lock()


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


async def _limited(value: Any, timeout_s: float) -> Any:
    # Cancelled a little later than it is given up, so that the reason told is the same for both kinds of calls.
    return await asyncio.wait_for(value, timeout_s + 1.0)
