"""Values of a row by name: nested ones by a dotted name, labels as text, and what is no label refused with its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightrft.errors import DataError, nearest


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


def absent(row: Mapping[str, Any], name: str, *, where: str) -> DataError:
    """The error for a row without a value that it must have. A column that is null counts as missing, as it is written in Arrow's files."""
    known = [path for path in paths(row) if value_at(row, path) is not None]
    return DataError(f"{where}: no column {name!r}{nearest(name, known)} (columns: {', '.join(known) or 'none'})")


def paths(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all values of a row, fields of structs by their dotted names."""
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from paths(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}"


def answers_at(row: Mapping[str, Any], name: str, *, where: str) -> tuple[str, ...]:
    """The label as text; of a list of accepted answers, all of them; none where it is missing or null.

    Raises:
        DataError: a struct (with its fields), an empty list, or a list of anything but plain values.
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
    return str(value)


def _fields(name: str, value: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}.{path}" for path in paths(value)) or "it has none"


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all columns of all rows, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(row))
    return list(found)
