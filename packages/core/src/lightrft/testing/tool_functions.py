"""Functions that tests give to a model as tools."""

from __future__ import annotations


def add(a: int, b: int = 1) -> int:
    """Adds.

    Args:
        a: one
        b: another
    """
    return a + b
