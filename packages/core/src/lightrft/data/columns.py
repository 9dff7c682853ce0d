"""Values that a row must have, labels as text, and what is no label refused with its fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.config.column_names import paths, value_at
from lightrft.errors import DataError, nearest


def absent(row: Mapping[str, Any], name: str, *, where: str) -> DataError:
    """The error for a row without a value that it must have. A column that is null counts as missing, as it is written in Arrow's files."""
    known = [path for path in paths(row) if value_at(row, path) is not None]
    return DataError(f"{where}: no column {name!r}{nearest(name, known)} (columns: {', '.join(known) or 'none'})")


def answers_at(row: Mapping[str, Any], name: str, *, where: str) -> tuple[str, ...]:
    """The label as text; of a list of accepted answers, all of them; none where it is missing or null.

    Raises:
        DataError: a struct (with its fields), an empty list, a list of anything but plain values, or a number that is not finite.
    """
    value = value_at(row, name)
    if value is None:
        return ()
    if isinstance(value, Mapping):
        raise DataError(f"{where}: column {name!r} is a struct, no answer; name one of its fields: {_fields(name, value)}")
    if not isinstance(value, (list, tuple)):
        return (_text(value, name=name, where=where),)
    if not value:
        raise DataError(f"{where}: column {name!r} is an empty list; give at least one accepted answer, or null")
    return tuple(_text(one, name=name, where=where) for one in value)


def _text(value: Any, *, name: str, where: str) -> str:
    if value is None or isinstance(value, (Mapping, list, tuple, bytes, bytearray)):
        inside = f" with the fields {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
        kind = {"dict": "struct", "NoneType": "null"}.get(type(value).__name__, type(value).__name__)
        raise DataError(
            f"{where}: column {name!r} holds a {kind}{inside}, expected one answer (text or a number) or a list of accepted ones"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: column {name!r} holds {value!r}, which no answer can be; write null where there is none")
    return str(value)


def _fields(name: str, value: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}.{path}" for path in paths(value)) or "it has none"


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all columns of all rows, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(row))
    return list(found)
