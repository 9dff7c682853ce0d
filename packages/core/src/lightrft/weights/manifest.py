"""Which tensors does a model folder hold, in which shapes? Read from the safetensors headers; no tensor is."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from lightrft.errors import ModelError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def expected_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Name to full shape. Empty where the folder has no safetensors (a hub name, other formats): then nothing can be compared.

    Raises:
        ModelError: a file that is cut off, or none of that format.
    """
    root = Path(folder)
    try:
        if (root / INDEX).is_file():
            files = sorted(set(json.loads((root / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            files = [WHOLE] if (root / WHOLE).is_file() else []
        return {name: shape for file in files for name, shape in _header(root / file).items()}
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"model folder {folder!r}: its safetensors cannot be read: {type(error).__name__}: {error}") from error


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    # The format: eight bytes with the header's length, then JSON (https://huggingface.co/docs/safetensors).
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
