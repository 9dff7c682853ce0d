"""Columns by the names that settings give them: fields of structs by dotted names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field in it (`reward_model.ground_truth`); None where there is none.

    A column whose own name has dots wins over a field.
    """
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    while dot:
        inner = row.get(head)
        if isinstance(inner, Mapping) and (found := value_at(inner, rest)) is not None:
            return found
        step, dot, rest = rest.partition(".")
        head = f"{head}.{step}"
    return None


def paths(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all values of a row, fields of structs by their dotted names."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from paths(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}"
