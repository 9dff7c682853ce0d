"""The weights that an engine's own tensor holds, fused with others or sharded over ranks. Learnt, and verified, on those of the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lightrft.weights.checksum import MODULUS, NOTHING, WeightChecksum, tensor_checksum, tensor_checksums
from lightrft.weights.experts import ExpertFiles, expert_name
from lightrft.weights.manifest import INDEX, WHOLE, expected_shapes

FUSED = (
    ("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj")), ("qkv_proj", ("qkv",)),
    ("fused_qkv_a_proj", ("q_a_proj", "kv_a_proj_with_mqa")),
)  # fmt: skip
"""What engines lay into one tensor, or call otherwise.

A guess that the folder's weights do not bear out is dropped, so a wrong one costs nothing.
"""


@dataclass(frozen=True)
class OwnChecksum:
    """Of one tensor of an engine's rank: `WeightChecksum.bits` and `.squares`, and its number of elements; of stacked experts also the two
    numbers of each, by place.
    """

    bits: int
    squares: int
    numel: int
    experts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_parts(cls, checksums: Sequence[tuple[int, int]], numel: int, *, stacked: bool) -> OwnChecksum:
        """Of a tensor whose parts have these checksums."""
        bits, squares = (sum(values) % MODULUS for values in zip(*checksums, strict=True))
        return cls(bits, squares, numel, tuple(checksums) if stacked else ())


@torch.no_grad()
def read_own_checksums(model: torch.nn.Module, *, dtype: torch.dtype) -> dict[str, OwnChecksum]:
    """Of each parameter under the engine's own names; those in another dtype, or emptied for a packed copy, are left out. Local."""
    held = {name: p.detach() for name, p in model.named_parameters() if p.dtype == dtype and p.numel() and not p.is_meta}
    parts = {name: list(p.unbind(0)) if _STACK.search(name) and p.dim() > 1 else [p] for name, p in held.items()}
    checksums = iter(tensor_checksums([part for each in parts.values() for part in each]))
    return {
        name: OwnChecksum.of_parts([next(checksums) for _ in each], held[name].numel(), stacked=each[0] is not held[name])
        for name, each in parts.items()
    }


_STACK = re.compile(r"\.experts\.(?!\d)")
"""In an engine's own name of stacked experts: `layers.0.mlp.experts.w13_weight`."""


@dataclass(frozen=True)
class _Rule:
    """`fused` in an own name stands for each of `parts`; "" where the name is the same."""

    fused: str
    parts: tuple[str, ...]
    sharded: bool

    def names(self, own: str) -> tuple[str, ...]:
        return tuple(own.replace(f".{self.fused}.", f".{part}.") for part in self.parts) if self.fused else (own,)


@dataclass(frozen=True)
class _StackRule:
    """An own tensor that holds the stacked experts `sent`, a name with * for each number."""

    sent: str
    sharded: bool


class OwnChecksums:
    """Puts an engine's own checksums under the names that weights are sent by.

    `ranks` are those of every rank of the engine while it holds the folder's weights. What is not exactly the folder's there, for the first
    and the last of each kind of tensor (equal but for the layer's number), is never reported: the engine holds it in another form.

    `sendable`: by the engine's name of a weight, before it is fused with others, the name that it is sent by and its name in the folder.
    `stacks`: of experts that are sent in one tensor, what the folder has of each. An engine may call them as it likes, and lay each out as
    it likes: they are found by their checksums, those of the same layer, each expert in its place.
    """

    def __init__(
        self,
        ranks: Sequence[Mapping[str, OwnChecksum]],
        *,
        folder: str,
        dtype: torch.dtype,
        sendable: Mapping[str, tuple[str, str]],
        stacks: Mapping[str, ExpertFiles] | None = None,
    ) -> None:
        self._folder = _Folder(folder, dtype)
        self._stacks = stacks or {}
        self._known = {own: names for own, names in sendable.items() if names[1] in self._folder.shapes}
        kinds: dict[str, list[str]] = {}
        for own in ranks[0]:
            kinds.setdefault(_kind(own), []).append(own)
        found = {kind: self._rule(ranks, dict.fromkeys((names[0], names[-1]))) for kind, names in kinds.items()}
        self._rules = {kind: rule for kind, rule in found.items() if rule is not None}
        stacked = {kind: (names[0], names[-1]) for kind, names in kinds.items() if kind not in self._rules and ranks[0][names[0]].experts}
        matched = {kind: self._stack_rule(ranks, dict.fromkeys(owns)) for kind, owns in stacked.items()}
        self._stack_rules = {kind: rule for kind, rule in matched.items() if rule is not None}

    def named(self, own: Mapping[str, OwnChecksum]) -> dict[tuple[str, ...], WeightChecksum]:
        """One rank's, by the names of what was laid into each."""
        found = {}
        for name, value in own.items():
            rule = self._rules.get(_kind(name))
            if rule is not None and all(n in self._known for n in rule.names(name)):
                sent = tuple(self._known[n][0] for n in rule.names(name))
                found[sent] = WeightChecksum(value.bits, value.squares, rule.sharded)
            stack = self._stack_rules.get(_kind(name))
            if stack is not None and (whole := _filled(stack.sent, name)) in self._stacks:
                for expert, (bits, squares) in enumerate(value.experts):
                    found[(expert_name(whole, expert),)] = WeightChecksum(bits, squares, stack.sharded)
        return found

    def _stack_rule(self, ranks: Sequence[Mapping[str, OwnChecksum]], owns: Collection[str]) -> _StackRule | None:
        """The one stack whose experts these are, in all of them; None where none is, or several are (all zeros, for one)."""
        found = [
            _StackRule(kind, sharded)
            for kind in dict.fromkeys(map(_kind, self._stacks))
            for sharded in (False, True)
            if all(self._holds_stack(_filled(kind, own), sharded, ranks, own) for own in owns)
        ]
        return found[0] if len({rule.sent for rule in found}) == 1 else None

    def _holds_stack(self, sent: str, sharded: bool, ranks: Sequence[Mapping[str, OwnChecksum]], own: str) -> bool:
        if sent not in self._stacks or not all(own in rank for rank in ranks):
            return False
        expected, values = self._folder.checksums_of_experts(self._stacks[sent]), [rank[own].experts for rank in ranks]
        if any(len(each) != len(expected) for each in values):  # each rank has experts of its own
            return False
        if not sharded:
            return all(_same(each, expected) for each in values)
        together = [sum((WeightChecksum(*value) for value in each), start=NOTHING) for each in zip(*values, strict=True)]
        return len(ranks) > 1 and all(found.same_as(wanted) for found, wanted in zip(together, expected, strict=True))

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
    return _NUMBER.sub("*", name)


def _filled(kind: str, own: str) -> str:
    """The name of that kind with the numbers of another; "" where there are more or fewer."""
    numbers = _NUMBER.findall(own)
    return re.sub(r"\*", lambda _: numbers.pop(0), kind) if kind.count("*") == len(numbers) else ""


def _same(found: Sequence[tuple[int, int]], expected: Sequence[WeightChecksum]) -> bool:
    return all(WeightChecksum(*value).same_as(wanted) for value, wanted in zip(found, expected, strict=True))


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class _Folder:
    """The checksums of a model folder's tensors in the engine's dtype."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        self.shapes = expected_shapes(folder)
        self._root = Path(folder)
        self._dtype = dtype
        index = self._root / INDEX
        self._files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}

        self._experts: dict[str, list[WeightChecksum]] = {}

    def numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def checksum_of(self, name: str) -> WeightChecksum:
        return WeightChecksum(*tensor_checksum(self._read(name)))

    def checksums_of_experts(self, files: ExpertFiles) -> list[WeightChecksum]:
        """Of each expert."""
        key = repr(files)
        if key not in self._experts:
            whole = [[WeightChecksum(*found) for found in tensor_checksums(list(self._read(name).unbind(0)))] for name in files.stacked]
            single = [[self.checksum_of(name) for name in each] for each in files.single]
            self._experts[key] = [sum(each, start=NOTHING) for each in (zip(*whole, strict=True) if whole else single)]
        return self._experts[key]

    def _read(self, name: str) -> torch.Tensor:
        with safe_open(self._root / self._files.get(name, WHOLE), framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor.to(self._dtype)
