"""Calls of environments, many at a time: plain functions in threads, `async` ones in one event loop; each has a time limit. No torch."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
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
        begun = self.begin()
        for number, call in enumerate(calls):
            begun.add(number, call)
        found = dict(begun.done(wait_s=None))
        return [found[number] for number in range(len(calls))]

    def begin(self) -> BegunCalls:
        """Of calls that are looked at while they run."""
        return BegunCalls(self._call, timeout_s=self._timeout_s, concurrency=self._concurrency)

    def close(self) -> None:
        """Ends the event loop, where one was begun. Idempotent."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

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


class BegunCalls:
    """Calls that have been begun, each under a number, which no other has while it runs; at most `concurrency` run at a time. Local."""

    def __init__(self, call: Callable[[Call, int, queue.SimpleQueue[Done]], None], *, timeout_s: float, concurrency: int) -> None:
        self._call, self._timeout_s, self._concurrency = call, timeout_s, concurrency
        self._ended: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._until: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._until)

    def add(self, number: int, call: Call) -> None:
        """Begins a call, now or when there is room. It sees the context variables of who adds it."""
        self._waiting.append((number, partial(contextvars.copy_context().run, self._call, call, number, self._ended)))
        self._start()

    def done(self, *, wait_s: float | None) -> list[tuple[int, Outcome]]:
        """Those that have ended since the last look, in the order of their ends. Waits for the first one, for `wait_s` at most; with None,
        until all have ended.
        """
        found: list[tuple[int, Outcome]] = []
        give_up = math.inf if wait_s is None else time.monotonic() + wait_s
        while self._until:
            enough = bool(found) and wait_s is not None
            until = min(give_up, *self._until.values())
            try:
                number, outcome, at = self._ended.get(timeout=0.0 if enough else max(until - time.monotonic(), 0.0))
                limit = self._until.pop(number, None)
                if limit is not None:
                    found.append((number, outcome if at <= limit else self._late()))
            except queue.Empty:
                late = [number for number, limit in self._until.items() if limit <= time.monotonic()]
                found += [(number, self._late()) for number in late]
                for number in late:
                    del self._until[number]
                if not late and (enough or time.monotonic() >= give_up):
                    break
            self._start()
        return found

    def _start(self) -> None:
        while self._waiting and len(self._until) < self._concurrency:
            number, work = self._waiting.popleft()
            self._until[number] = time.monotonic() + self._timeout_s
            threading.Thread(target=work, name="lightrft-environment", daemon=True).start()

    def _late(self) -> Outcome:
        return Outcome(error=TimeoutError(f"did not return within {self._timeout_s:g} s (environment_timeout_s)"))


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
