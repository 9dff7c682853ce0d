"""Counts calls of an object's method while it does what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def count_calls(owner: Any, method: str) -> Callable[[], int]:
    """From now on, of this object alone. The result says how many there were so far."""
    own, made = getattr(owner, method), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        return own(*args, **options)

    setattr(owner, method, counted)
    return lambda: made
