"""Cells of Arrow tables as Python's values: numbers as they were written, and a cell that is none named by its place."""

from __future__ import annotations

import math
import re
import struct
from contextlib import suppress
from typing import Any

from lightrft.errors import DataError

DIGITS = {"halffloat": ("e", range(1, 6)), "float": ("f", range(1, 10))}
"""Of Arrow's floats of fewer than 64 bits: their format in `struct`, and how many digits may say which number is meant."""


def python_rows(table: Any, path: str) -> list[dict[str, Any]]:
    """The rows of an Arrow table. A float of fewer than 64 bits is the shortest decimal that means it: 0.1, as it stands in other formats,
    and not 0.10000000149011612.

    Raises:
        DataError: a cell that no value of Python is (text that is no Unicode, a time beyond its years), by row and column.
    """
    columns = {name: _cells(table.column(name), name, path) for name in table.column_names}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _cells(column: Any, name: str, path: str) -> list[Any]:
    try:
        cells = column.to_pylist()
    except (ValueError, OverflowError) as error:  # Arrow's own errors are ValueErrors, as are those of decoding
        row = next((index for index, cell in enumerate(column) if not _readable(cell)), 0)
        reason = " ".join(str(error).split())
        raise DataError(f"{path}, row {row}: column {name!r} ({column.type}) cannot be read: {reason:.200}; mend or remove it") from error
    return [_as_written(cell, column.type) for cell in cells] if re.search(r"\b(half)?float\b", str(column.type)) else cells


def _readable(cell: Any) -> bool:
    try:
        cell.as_py()
    except (ValueError, OverflowError):
        return False
    return True


def _as_written(value: Any, kind: Any) -> Any:
    """The floats of a cell as decimals, at any depth."""
    if isinstance(value, float):
        return _shortest(value, str(kind))
    if isinstance(value, dict):
        return {name: _as_written(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list) and hasattr(kind, "item_type"):  # a map, as pairs
        return [(_as_written(key, kind.key_type), _as_written(inner, kind.item_type)) for key, inner in value]
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_as_written(inner, kind.value_type) for inner in value]
    return value


def _shortest(value: float, kind: str) -> float:
    code, digits = next((known for name, known in DIGITS.items() if re.search(rf"\b{name}\b", kind)), ("d", range(0)))
    if math.isfinite(value) and not (value.is_integer() and abs(value) < 2**53):  # whole numbers are meant as they are
        for count in digits:
            short = float(f"{value:.{count}g}")
            with suppress(OverflowError):  # rounded beyond the largest one
                if struct.unpack(code, struct.pack(code, short)) == (value,):
                    return short
    return value
