"""Permission to run programs that a model wrote: given by `allow_code_execution`, asked for where a program would start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lightrft.errors import CodePermissionError

_ALLOWED: ContextVar[bool | None] = ContextVar("lightrft_code_execution", default=None)
"""None outside a run: who calls a reward by hand has decided."""


@contextmanager
def code_execution(allowed: bool) -> Iterator[None]:
    """While a run's reward is asked, in this thread: whether its settings allow a model's programs to run."""
    token = _ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def require_code_execution() -> None:
    """Called where a model's program would start, by whatever name the reward was found.

    Raises:
        CodePermissionError: the run that asks has `allow_code_execution` off.
    """
    if _ALLOWED.get() is False:
        raise CodePermissionError(
            "this reward runs programs that the model wrote, and allow_code_execution is off; set --allow_code_execution, in a container "
            "that may be lost"
        )
