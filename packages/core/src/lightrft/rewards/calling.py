"""Calling a user's function, which may be `async`: from any thread, whether or not an event loop runs there (as it does in a notebook), and
without a trace of what it changes of the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def put_back() -> Iterator[None]:
    """Afterwards the working folder and torch's gradient mode, default dtype and device are as they were before: relative paths of
    the settings and the training itself hang on them.
    """
    folder = None
    with suppress(OSError):  # it was taken away
        folder = os.getcwd()
    torch = sys.modules.get("torch")
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()) if torch is not None else None
    try:
        yield
    finally:
        if folder is not None:
            with suppress(OSError):
                os.chdir(folder)
        if torch is not None and before is not None:
            gradients, dtype, device = before
            torch.set_grad_enabled(gradients)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(None if device.type == "cpu" else device)


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
