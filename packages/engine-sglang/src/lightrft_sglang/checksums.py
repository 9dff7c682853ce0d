"""What SGLang's schedulers hold. A "weight loader" that loads nothing: it writes down the checksums of the model it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import torch

from lightrft.weights.fused_fingerprints import OwnChecksum, read_own_checksums

LOADER = "lightrft_sglang.checksums.write"
"""The name under which SGLang imports it, in each scheduler."""


SHORTER = ("language_model.", "model.")
"""What SGLang leaves out of names in image-text models."""


def own_names(files: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """For `OwnChecksums`: the names that SGLang may hold a weight under, each with the name that it is sent by and that in the folder.
    `files` has the latter two.
    """
    shorter = {file.replace(part, "", 1): (sent, file) for part in SHORTER for sent, file in files.items() if part in file}
    return shorter | {file: (sent, file) for sent, file in files.items()}


def question(folder: str, *, dtype: torch.dtype) -> list[tuple[str, torch.Tensor]]:
    """The "weights" that tell it where to write, and of which dtype."""
    words = {"folder": folder, "dtype": str(dtype).removeprefix("torch.")}
    return [(name, torch.tensor(list(text.encode()), dtype=torch.uint8)) for name, text in words.items()]


def write(model: torch.nn.Module, named_tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """In a scheduler: one file for each rank of the engine."""
    from sglang.srt.distributed.parallel_state import get_tensor_model_parallel_rank

    words = {name: bytes(tensor.tolist()).decode() for name, tensor in named_tensors}
    found = {name: astuple(value) for name, value in read_own_checksums(model, dtype=getattr(torch, words["dtype"])).items()}
    (Path(words["folder"]) / f"{get_tensor_model_parallel_rank()}.json").write_text(json.dumps(found), encoding="utf-8")


def read(folder: str, *, ranks: int) -> list[dict[str, OwnChecksum]]:
    """What they wrote, by rank."""
    texts = [(Path(folder) / f"{rank}.json").read_text(encoding="utf-8") for rank in range(ranks)]
    return [{name: _own_checksum(*value) for name, value in json.loads(text).items()} for text in texts]


def _own_checksum(bits: int, squares: int, numel: int, experts: list[list[int]]) -> OwnChecksum:
    return OwnChecksum(bits, squares, numel, tuple((first, second) for first, second in experts))
