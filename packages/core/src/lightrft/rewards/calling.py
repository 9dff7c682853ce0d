"""Calling a function that may be `async`: from any thread, whether or not an event loop runs there (as it does in a notebook)."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from typing import Any


def settled(answer: Any) -> Any:
    """What an awaitable comes to; anything else as it is."""
    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    return _in_another_thread(lambda: asyncio.run(wait()))


def _in_another_thread(work: Any) -> Any:
    found: list[Any] = []
    raised: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            found.append(context.run(work))
        except BaseException as error:  # raised below, where it was asked for
            raised.append(error)

    thread = threading.Thread(target=run, name="lightrft-async-reward")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]
