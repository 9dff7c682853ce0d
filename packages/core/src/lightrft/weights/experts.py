"""Experts that lie in one tensor, each with a checksum: two that are exchanged leave that of the whole as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from lightrft.weights.checksum import WeightChecksum, tensor_checksums

_STACK = re.compile(r"\.experts\.[A-Za-z_]\w*$")
"""How transformers ends the names of stacked experts: `layers.0.mlp.experts.gate_up_proj`. Those held one by one have a number there."""

_PARALLEL = re.compile(r"\.(in|out)put_linear\.weight$")
"""The same of Granite's before transformers 5.19; its shared experts, of two dimensions, have such names, too."""

_ONE = re.compile(r"\.experts\.(\d+)\.")
"""In the name of a file's tensor that is one expert's."""


@dataclass(frozen=True)
class ExpertFiles:
    """What a model folder has of stacked experts: names of tensors that are stacks themselves, or those of each expert, by its number."""

    stacked: tuple[str, ...] = ()
    single: tuple[tuple[str, ...], ...] = ()


def expert_files(shape: Sequence[int], files: Mapping[str, Sequence[int]]) -> ExpertFiles | None:
    """Of a stack [E, ...] that lies in a folder as these tensors, with their shapes; None: in another way."""
    if all(len(found) > 1 and found[0] == shape[0] and not _ONE.search(name) for name, found in files.items()):
        return ExpertFiles(stacked=tuple(files))
    by_number: dict[int, list[str]] = {}
    for name in files:
        if match := _ONE.search(name):
            by_number.setdefault(int(match[1]), []).append(name)
    if sorted(by_number) != list(range(shape[0])) or sum(map(len, by_number.values())) != len(files):
        return None
    return ExpertFiles(single=tuple(tuple(by_number[expert]) for expert in range(shape[0])))


def is_stack(name: str, dimensions: int) -> bool:
    """Whether a weight of that name and number of dimensions is [experts, ...]."""
    return (dimensions > 1 and _STACK.search(name) is not None) or (dimensions == 3 and _PARALLEL.search(name) is not None)


def expert_name(name: str, expert: int) -> str:
    """Under which the checksum of one expert of a stack is given."""
    return f"{name}[{expert}]"


def parts_of(names: Sequence[str], tensor: torch.Tensor) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """What of a weight has a checksum: of a stack each expert under its names, else the whole. Views."""
    if not is_stack(names[0], tensor.dim()):
        yield tuple(names), tensor
        return
    for expert, part in enumerate(tensor.unbind(0)):
        yield tuple(expert_name(name, expert) for name in names), part


def checksums_of(held: Mapping[tuple[str, ...], torch.Tensor]) -> dict[tuple[str, ...], WeightChecksum]:
    """The checksums of weights by their names, as `weight_checksums` gives them; all on one device."""
    parts = [part for names, tensor in held.items() for part in parts_of(names, tensor.detach())]
    return {
        names: WeightChecksum(*found) for (names, _), found in zip(parts, tensor_checksums([tensor for _, tensor in parts]), strict=True)
    }
