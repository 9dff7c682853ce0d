"""torch's own weight files (`pytorch_model.bin`, or an index of several): what they hold, by name, without a value read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from lightrft.config.model_folder import torch_files
from lightrft.config.tensor_headers import TensorHeader

REMEDY = "save the model's state dict alone, with save_pretrained"
WORDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""The safetensors format's words for torch's dtypes."""


def torch_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of all of the folder's files, which stay on disk until values are asked for; empty where it has none. No code of theirs is run.

    Raises:
        ValueError: a file that holds something else than names and tensors, or cannot be read, in words that follow the folder's name.
    """
    found: dict[str, torch.Tensor] = {}
    for file in torch_files(folder):
        try:
            held: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except UnpicklingError as error:
            raise ValueError(f"{file.name} holds more than tensors, which only running code of the file would read; {REMEDY}") from error
        except Exception as error:  # of zip or torch: they have no common class
            raise ValueError(f"{file.name} is damaged: {type(error).__name__}: {' '.join(str(error).split()):.120}") from error
        if not isinstance(held, Mapping):
            raise ValueError(f"{file.name} holds a {type(held).__name__}, expected names and tensors; {REMEDY}")
        for name, tensor in held.items():
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{file.name} holds a {type(tensor).__name__} as {name!r}, expected a tensor; {REMEDY}")
            if tensor.is_meta or tensor.layout != torch.strided:
                kind = "without values" if tensor.is_meta else f"in the layout {str(tensor.layout).removeprefix('torch.')}"
                raise ValueError(f"{file.name} holds {name!r} {kind}, expected a plain tensor; {REMEDY}")
            found[str(name)] = tensor
    return found


def headers_of(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, TensorHeader]:
    """Dtypes and shapes; the bytes are not those of a file."""
    return {
        name: TensorHeader(dtype=WORDS.get(t.dtype, str(t.dtype)), shape=tuple(t.shape), file=folder, begin=0, end=0)
        for name, t in tensors.items()
    }
