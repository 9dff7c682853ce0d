"""The weights that an engine's own tensor holds, fused with others or sharded over ranks. Learnt, and verified, on those of the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lightrft.weights.checksum import NOTHING, WeightChecksum, tensor_checksum, tensor_checksums
from lightrft.weights.manifest import INDEX, WHOLE, expected_shapes

FUSED = (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj")), ("qkv_proj", ("qkv",)))
"""What engines lay into one tensor, or call otherwise.

A guess that the folder's weights do not bear out is dropped, so a wrong one costs nothing.
"""


@dataclass(frozen=True)
class OwnChecksum:
    """Of one tensor of an engine's rank: `WeightChecksum.bits` and `.squares`, and its number of elements."""

    bits: int
    squares: int
    numel: int


@torch.no_grad()
def read_own_checksums(model: torch.nn.Module, *, dtype: torch.dtype) -> dict[str, OwnChecksum]:
    """Of each parameter under the engine's own names; those in another dtype, or emptied for a packed copy, are left out. Local."""
    held = {name: p for name, p in model.named_parameters() if p.dtype == dtype and p.numel() and not p.is_meta}
    checksums = tensor_checksums([p.detach() for p in held.values()])
    return {name: OwnChecksum(bits, squares, p.numel()) for (name, p), (bits, squares) in zip(held.items(), checksums, strict=True)}


@dataclass(frozen=True)
class _Rule:
    """`fused` in an own name stands for each of `parts`; "" where the name is the same."""

    fused: str
    parts: tuple[str, ...]
    sharded: bool

    def names(self, own: str) -> tuple[str, ...]:
        return tuple(own.replace(f".{self.fused}.", f".{part}.") for part in self.parts) if self.fused else (own,)


class OwnChecksums:
    """Puts an engine's own checksums under the names that weights are sent by.

    `ranks` are those of every rank of the engine while it holds the folder's weights. What is not exactly the folder's there, for the first
    and the last of each kind of tensor (equal but for the layer's number), is never reported: the engine holds it in another form.

    `sendable`: by the engine's name of a weight, before it is fused with others, the name that it is sent by and its name in the folder.
    """

    def __init__(
        self,
        ranks: Sequence[Mapping[str, OwnChecksum]],
        *,
        folder: str,
        dtype: torch.dtype,
        sendable: Mapping[str, tuple[str, str]],
    ) -> None:
        self._folder = _Folder(folder, dtype)
        self._known = {own: names for own, names in sendable.items() if names[1] in self._folder.shapes}
        kinds: dict[str, list[str]] = {}
        for own in ranks[0]:
            kinds.setdefault(_kind(own), []).append(own)
        found = {kind: self._rule(ranks, dict.fromkeys((names[0], names[-1]))) for kind, names in kinds.items()}
        self._rules = {kind: rule for kind, rule in found.items() if rule is not None}

    def named(self, own: Mapping[str, OwnChecksum]) -> dict[tuple[str, ...], WeightChecksum]:
        """One rank's, by the names of what was laid into each."""
        found = {}
        for name, value in own.items():
            rule = self._rules.get(_kind(name))
            if rule is not None and all(n in self._known for n in rule.names(name)):
                sent = tuple(self._known[n][0] for n in rule.names(name))
                found[sent] = WeightChecksum(value.bits, value.squares, rule.sharded)
        return found

    def _rule(self, ranks: Sequence[Mapping[str, OwnChecksum]], owns: Collection[str]) -> _Rule | None:
        return next((rule for rule in _guesses() if all(self._holds(rule, ranks, own) for own in owns)), None)

    def _holds(self, rule: _Rule, ranks: Sequence[Mapping[str, OwnChecksum]], own: str) -> bool:
        names = rule.names(own)
        if (rule.fused and names[0] == own) or not all(n in self._known for n in names) or not all(own in rank for rank in ranks):
            return False
        files = [self._known[n][1] for n in names]
        whole = sum(self._folder.numel(file) for file in files)
        if rule.sharded != (ranks[0][own].numel < whole):
            return False
        expected = sum((self._folder.checksum_of(file) for file in files), start=NOTHING)
        values = [WeightChecksum(rank[own].bits, rank[own].squares, rule.sharded) for rank in ranks]
        return sum(values, start=NOTHING).same_as(expected) if rule.sharded else all(v.same_as(expected) for v in values)


def _guesses() -> Iterator[_Rule]:
    for sharded in (False, True):
        yield _Rule("", (), sharded)
        for fused, parts in FUSED:
            yield _Rule(fused, parts, sharded)


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


class _Folder:
    """The checksums of a model folder's tensors in the engine's dtype."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        self.shapes = expected_shapes(folder)
        self._root = Path(folder)
        self._dtype = dtype
        index = self._root / INDEX
        self._files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}

    def numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def checksum_of(self, name: str) -> WeightChecksum:
        with safe_open(self._root / self._files.get(name, WHOLE), framework="pt") as opened:
            return WeightChecksum(*tensor_checksum(opened.get_tensor(name).to(self._dtype)))
