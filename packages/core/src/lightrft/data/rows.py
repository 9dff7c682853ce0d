"""Data as rows: `.jsonl`, `.parquet`, a `datasets` folder or a dataset of the hub, with errors that say where.

A row means the same from each of them: Arrow writes null for every key that a row lacks, so null and missing are one thing. At the top of a
row such a column is None; inside structs and lists of structs the key is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightrft.config.column_names import value_at
from lightrft.config.data_sources import hub_name
from lightrft.data.cells import python_rows
from lightrft.data.columns import absent, names_of
from lightrft.data.hub import INSTALL, hub_rows
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


def load_rows(path: str, *, required: Sequence[str], known: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of a `.jsonl` or `.parquet` file, a `datasets` folder (of a DatasetDict: split train) or a dataset of the hub, in order.

    Every row has a value for each `required` name, at least one has it for each `known` one; names may be dotted.

    Raises:
        DataError: missing, empty, malformed or unknown file, text that is no Unicode, a row that is no object, or lacks a value.
    """
    return load_table(path, required=required, known=known).rows


def load_table(path: str, *, required: Sequence[str], known: Sequence[str] = ()) -> Table:
    """As `load_rows`, with the place of each row kept for messages."""
    hub = hub_name(path)
    read = Table(path=path, rows=hub_rows(hub)) if hub else _read(Path(path).expanduser())
    if not read.rows:
        raise DataError(f"{read.path} holds no rows; at least one is needed")
    columns = names_of(read.rows)
    table = replace(read, rows=[{name: _plain(row.get(name)) for name in columns} for row in read.rows])
    for index, row in enumerate(table.rows):
        for name in required:
            if value_at(row, name) is None:
                raise absent(row, name, where=table.where(index))
    for name in known:
        if all(value_at(row, name) is None for row in table.rows):
            if name in columns:
                raise DataError(f"{table.path}: column {name!r} is null in every row; fill it, or name another")
            known_here = f"{nearest(name, columns)} (columns: {', '.join(columns) or 'none'})"
            raise DataError(f"{table.where(0)}: no column {name!r}{known_here}; label_key names that of the answers, or is empty: none")
    return table


def _plain(value: Any) -> Any:
    """Without the keys that are null, at any depth; Arrow's maps, which come as lists of pairs, as objects."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) and len(one) == 2 for one in value):
            return {key: _plain(inner) for key, inner in value if inner is not None}
        return [_plain(inner) for inner in value]
    return value


def copied(value: Any) -> Any:
    """Objects and lists anew, at any depth; what stands in them as it is."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def _read(source: Path) -> Table:
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder ({POSSIBLE})")
    if not source.is_file():
        raise DataError(f"{source}: a pipe or a device, which ranks cannot read twice; write it to a file ({POSSIBLE})")
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
                row = _parse_line(raw, f"{source}:{number}")
                if rb"\u" in raw:  # UTF-8 itself cannot hold one; an escape can
                    _refuse_surrogates(row, f"{source}:{number}")
                rows.append(row)
                lines.append(number)
    return Table(path=str(source), rows=rows, lines=lines)


def _parse_line(raw: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {raw[error.start]:#04x} at position {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
        reason = "nested too deeply" if isinstance(error, RecursionError) else reason
        start = raw.decode("utf-8", "replace").strip()[:60]
        raise DataError(f"{where}: not JSON: {reason}; found {start!r}, expected one JSON object on each line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: found a {type(row).__name__}, {str(row)[:60]!r}, expected a JSON object with named columns")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where a name stands twice, of which json would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _refuse_surrogates(row: dict[str, Any], where: str) -> None:
    for column, value in row.items():
        for text in (column, *_texts(value)):
            at = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
            if at is not None:
                raise DataError(
                    f"{where}: column {column.encode('ascii', 'backslashreplace').decode()!r} holds half of a surrogate pair, "
                    f"\\u{ord(text[at]):04x} at character {at}, which is no text; write the whole character, or remove it"
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _read_parquet(source: Path) -> Table:
    import pyarrow  # slow to import, and only this format needs it
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(str(source))
    except pyarrow.ArrowException as error:
        raise DataError(f"{source} is not a readable parquet file: {' '.join(str(error).split())}") from error
    return Table(path=str(source), rows=python_rows(table, str(source)))


def _read_folder(source: Path) -> Table:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source} is a folder, and reading one {INSTALL}") from None
    try:
        found = datasets.load_from_disk(str(source))
    except Exception as error:  # its errors for a strange folder have no common class
        if _written_without_rows(source):
            return Table(path=str(source), rows=[])
        reason = " ".join(str(error).split())
        what = f"{source} is not a folder written by datasets.save_to_disk ({type(error).__name__}: {reason})"
        raise DataError(f"{what}; give such a folder, a .jsonl or .parquet file, or a hub name OWNER/NAME:SUBSET:SPLIT") from error
    if isinstance(found, datasets.DatasetDict):
        if not found:
            return Table(path=str(source), rows=[])
        if "train" not in found:
            raise DataError(
                f"{source} holds the splits {', '.join(found)} but no 'train'; "
                f"give the folder of one split, such as {source / next(iter(found))}"
            )
        found = found["train"]
    return Table(path=str(source), rows=python_rows(found.with_format("arrow")[:], str(source)))  # images stay encoded


def _written_without_rows(source: Path) -> bool:
    """Whether `datasets` wrote that folder, or its split train, of no rows: it names no file then, which `datasets` cannot read."""
    for state in (source / "state.json", source / "train" / "state.json"):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(state.read_text(encoding="utf-8")).get("_data_files") == []:
                return True
    return False
