"""How does a data file become rows? `.jsonl`, `.parquet` or a `datasets` folder, with errors that say where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft.errors import DataError, nearest

POSSIBLE = "possible: .jsonl, .parquet, or a folder written by datasets.save_to_disk"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one file in file order; `lines` are their line numbers where the file has lines."""

    path: str
    rows: list[dict[str, Any]]
    lines: list[int] | None = None

    def where(self, index: int) -> str:
        """`path:line` for a line of text, else `path, row k` (counted from 0)."""
        return f"{self.path}:{self.lines[index]}" if self.lines else f"{self.path}, row {index}"


def load_rows(path: str, *, required: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of a `.jsonl` or `.parquet` file or a `datasets` folder (of a DatasetDict: split train), in file order.

    Raises:
        DataError: missing, empty, malformed or unknown file, a row that is no object, a row without a required column.
    """
    return load_table(path, required=required).rows


def load_table(path: str, *, required: Sequence[str]) -> Table:
    """As `load_rows`, with the place of each row kept for messages."""
    table = _read(Path(path).expanduser())
    if not table.rows:
        raise DataError(f"{table.path} holds no rows; at least one is needed")
    for index, row in enumerate(table.rows):
        for column in required:
            if column not in row:
                known = [str(name) for name in row]
                columns = ", ".join(known) or "none"
                raise DataError(f"{table.where(index)}: no column {column!r}{nearest(column, known)} (columns: {columns})")
    return table


def _read(source: Path) -> Table:
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder ({POSSIBLE})")
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if source.suffix not in readers:
        raise DataError(f"{source}: cannot read a file with suffix {source.suffix!r} ({POSSIBLE})")
    try:
        return readers[source.suffix](source)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error


def _read_jsonl(source: Path) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    with source.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                rows.append(_parse_line(raw, f"{source}:{number}"))
                lines.append(number)
    return Table(path=str(source), rows=rows, lines=lines)


def _parse_line(raw: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {raw[error.start]:#04x} at position {error.start}); save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        start = raw.decode("utf-8", "replace").strip()[:60]
        raise DataError(f"{where}: not JSON: {reason}; found {start!r}, expected one JSON object on each line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: found a {type(row).__name__}, {str(row)[:60]!r}, expected a JSON object with named columns")
    return row


def _read_parquet(source: Path) -> Table:
    import pyarrow  # slow to import, and only this format needs it
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(str(source)).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{source} is not a readable parquet file: {' '.join(str(error).split())}") from error
    return Table(path=str(source), rows=rows)


def _read_folder(source: Path) -> Table:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source} is a folder, and reading one needs the `datasets` package: pip install 'lightrft[datasets]'") from None
    try:
        found = datasets.load_from_disk(str(source))
    except Exception as error:  # its errors for a strange folder have no common class
        reason = " ".join(str(error).split())
        raise DataError(f"{source} is not a folder written by datasets.save_to_disk: {type(error).__name__}: {reason}") from error
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            raise DataError(
                f"{source} holds the splits {', '.join(found)} but no 'train'; "
                f"give the folder of one split, such as {source / next(iter(found))}"
            )
        found = found["train"]
    return Table(path=str(source), rows=[dict(row) for row in found])
