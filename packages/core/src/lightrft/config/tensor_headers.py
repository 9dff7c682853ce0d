"""Names, dtypes and shapes of a model folder's tensors, from the headers of its safetensors files; no tensor is read, no torch loaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
LENGTH = 8
"""The format: so many bytes with the header's length, then JSON, then the tensors (https://huggingface.co/docs/safetensors)."""

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8,
    "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """`dtype` in the format's own words, such as BF16; the bytes from `begin` to `end` of `file` are the tensor's."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def has_safetensors(folder: Path) -> bool:
    """Whether the folder's weights are read from safetensors: it has the one file, or an index of several."""
    return (folder / INDEX).is_file() or (folder / WHOLE).is_file()


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Of all tensors that the folder's index names, or of its one file; empty where it has neither.

    Raises:
        ValueError: what is wrong with which file, in words that follow the folder's name.
    """
    if not (folder / INDEX).is_file():
        return read_headers(folder / WHOLE) if (folder / WHOLE).is_file() else {}
    found: dict[str, TensorHeader] = {}
    index = _index(folder)
    if (folder / WHOLE).is_file() and WHOLE not in index.values():
        raise ValueError(
            f"{WHOLE} lies beside {INDEX}, which names other files: libraries differ in which they read; take one of the two out"
        )
    for name in sorted(set(index.values())):
        if not (folder / name).is_file():
            raise ValueError(f"{INDEX} names {name}, which is missing")
        found |= read_headers(folder / name)
    lacking = sorted(name for name, file in index.items() if name not in found or found[name].file.name != Path(file).name)
    if lacking:
        raise ValueError(f"{INDEX} says that {index[lacking[0]]} holds {lacking[0]}, which is not in it ({len(lacking)} in all)")
    return found


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """Of one file. Raises ValueError as `tensor_headers`."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH), "little")
        if size < LENGTH or length > size - LENGTH:
            raise ValueError(f"{file.name} is damaged: {'it is empty' if not size else f'{size} bytes, shorter than its header'}")
        try:
            header = json.loads(opened.read(length))
            notes = header.get("__metadata__") or {}
            if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
                raise ValueError("notes that are no text")
            found = {name: _entry(file, LENGTH + length, entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file.name} is damaged: its header is not that of a safetensors file") from error
    for name, entry in found.items():
        bits = math.prod(entry.shape) * BITS.get(entry.dtype, 0)
        if entry.end > size:
            raise ValueError(f"{file.name} is cut off: {size} bytes, and {name} ends at {entry.end}; copy it again")
        if bits and (entry.end - entry.begin) * 8 != bits:
            raise ValueError(f"{file.name} is damaged: {name} has {entry.end - entry.begin} bytes for {entry.dtype} {list(entry.shape)}")
    _check_covered(file, found, begin=LENGTH + length, end=size)
    return found


def _check_covered(file: Path, found: dict[str, TensorHeader], *, begin: int, end: int) -> None:
    """The format has no gap between tensors, no byte of two of them, and none behind the last. Raises ValueError."""
    for name, entry in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != begin:
            raise ValueError(f"{file.name} is damaged: {name} begins at byte {entry.begin}, expected {begin}; copy it again")
        begin = entry.end
    if begin != end:
        raise ValueError(f"{file.name} is damaged: {end} bytes, and its last tensor ends at {begin}; copy it again")


def _index(folder: Path) -> dict[str, str]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        known = index["weight_map"]
        if not isinstance(known, dict) or not known or not all(isinstance(file, str) for file in known.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{INDEX} is damaged: it has no weight_map from names to files") from error
    if outside := [file for file in known.values() if Path(file).is_absolute() or ".." in Path(file).parts]:
        raise ValueError(f"{INDEX} names {outside[0]!r}, which is outside of the folder; put the files beside it")
    if not isinstance(index.get("metadata"), dict):  # transformers asks for it
        raise ValueError(f'{INDEX} has no "metadata", without which transformers does not load it; add "metadata": {{}} to it')
    return known


def _entry(file: Path, start: int, entry: dict[str, Any]) -> TensorHeader:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("sizes that are no whole numbers")
    return TensorHeader(dtype=str(entry["dtype"]), shape=shape, file=file, begin=start + begin, end=start + end)
