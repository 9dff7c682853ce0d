"""Permission to run programs that a model wrote: given by `allow_code_execution`, asked for where a program would start."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from lightrft.errors import CodePermissionError


@dataclass(frozen=True, kw_only=True)
class _Permission:
    allowed: bool
    weak: bool


FORBIDDEN = "LIGHTRFT_CODE_FORBIDDEN"
"""In the environment while a run's rewards or tools are asked that may not: how many calls of them there are."""
_LOCK = threading.Lock()
_PERMISSION: ContextVar[_Permission | None] = ContextVar("lightrft_code_execution", default=None)
"""None outside a run: who calls a reward or a tool by hand has decided; and in threads that a reward starts."""


@contextmanager
def code_execution(allowed: bool, *, weak: bool = False) -> Iterator[None]:
    """While a run's rewards or tools are asked, in this context: whether its settings allow a model's programs to run.

    `weak`: in a sandbox without namespaces, where the system gives none (`code_sandbox`). A thread begins with a context of its own: who
    starts one for tools runs it in a copy of this one (`contextvars.copy_context`).
    """
    token = _PERMISSION.set(_Permission(allowed=allowed, weak=weak))
    if not allowed:
        _forbid(+1)
    try:
        yield
    finally:
        _PERMISSION.reset(token)
        if not allowed:
            _forbid(-1)


def _forbid(change: int) -> None:
    """One more, or one less, that forbids it to this process: to threads that a function starts with a context of their own, and by the
    environment to processes that it starts.
    """
    with _LOCK:
        count = int(os.environ.get(FORBIDDEN, "0")) + change
        if count > 0:
            os.environ[FORBIDDEN] = str(count)
        else:
            os.environ.pop(FORBIDDEN, None)


def require_code_execution() -> None:
    """Called where a model's program would start, by whatever name the reward or the tool was found.

    Raises:
        CodePermissionError: the run that asks has `allow_code_execution` off.
    """
    permission = _PERMISSION.get()
    forbidden = FORBIDDEN in os.environ if permission is None else not permission.allowed
    if forbidden:
        raise CodePermissionError(
            "this runs programs that the model wrote, and allow_code_execution is off; set --allow_code_execution, in a container that may "
            "be lost"
        )


def sandbox_is_weak() -> bool:
    """Whether the run that asks goes on without namespaces; False outside a run."""
    permission = _PERMISSION.get()
    return permission is not None and permission.weak
