"""Permission to run programs that a model wrote: given by `allow_code_execution`, asked for where a program would start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from lightrft.errors import CodePermissionError


@dataclass(frozen=True, kw_only=True)
class _Permission:
    allowed: bool
    weak: bool


_PERMISSION: ContextVar[_Permission | None] = ContextVar("lightrft_code_execution", default=None)
"""None outside a run: who calls a reward or a tool by hand has decided."""


@contextmanager
def code_execution(allowed: bool, *, weak: bool = False) -> Iterator[None]:
    """While a run's rewards or tools are asked, in this context: whether its settings allow a model's programs to run.

    `weak`: in a sandbox without namespaces, where the system gives none (`code_sandbox`). A thread begins with a context of its own: who
    starts one for tools runs it in a copy of this one (`contextvars.copy_context`).
    """
    token = _PERMISSION.set(_Permission(allowed=allowed, weak=weak))
    try:
        yield
    finally:
        _PERMISSION.reset(token)


def require_code_execution() -> None:
    """Called where a model's program would start, by whatever name the reward or the tool was found.

    Raises:
        CodePermissionError: the run that asks has `allow_code_execution` off.
    """
    permission = _PERMISSION.get()
    if permission is not None and not permission.allowed:
        raise CodePermissionError(
            "this runs programs that the model wrote, and allow_code_execution is off; set --allow_code_execution, in a container that may "
            "be lost"
        )


def sandbox_is_weak() -> bool:
    """Whether the run that asks goes on without namespaces; False outside a run."""
    permission = _PERMISSION.get()
    return permission is not None and permission.weak
