"""Whether the engine holds what was sent. Names and shapes before a byte moves, checksums of bit patterns after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from lightrft.weights.buckets import WeightBucket
from lightrft.weights.checksum import NOTHING, WeightChecksum, checksums_on_device, read_checksums
from lightrft.weights.experts import parts_of

Shape = tuple[int, ...]
MAX_NAMED = 3


def shape_problems(sent: Mapping[tuple[str, ...], Shape], held: Mapping[str, Shape]) -> list[str]:
    """What is wrong with weights of these names (all names of a tied one) and shapes for an engine that was built from `held`."""
    unknown, misshapen = [], []
    for names, shape in sent.items():
        known = [name for name in names if name in held]
        if not known:
            unknown.append(names[0])
        misshapen += [f"{name} (the engine has {held[name]}, the actor {shape})" for name in known if held[name] != shape]
    covered = {name for names in sent for name in names}
    missing = [name for name in held if name not in covered]
    return [
        f"{what}: {first_names(found)}"
        for what, found in (("the actor lacks", missing), ("the engine does not know", unknown), ("of another shape", misshapen))
        if found
    ]


class SentChecksums:
    """The checksums of all weights of one sync, taken as their buckets pass by, and the comparison with the engine's own. Of stacked
    experts each has one, under `experts.expert_name`.
    """

    def __init__(self) -> None:
        self._found: list[torch.Tensor] = []
        self._index: dict[str, range] = {}  # of a name, the checksums that its weight is made of
        self._weights: dict[str, range] = {}  # by first names alone, in the order of sending
        self._count = 0

    def watch(self, buckets: Iterable[WeightBucket]) -> Iterator[WeightBucket]:
        """The same buckets; the checksums of each are taken first. On a GPU nobody waits for them until they are compared."""
        for bucket in buckets:
            each = [list(parts_of(weight.names, weight.tensor)) for weight in bucket]
            self._found.append(checksums_on_device([tensor for parts in each for _, tensor in parts]))
            for weight, parts in zip(bucket, each, strict=True):
                first = self._count
                for names, _ in parts:
                    self._index |= dict.fromkeys(names, range(self._count, self._count + 1))
                    self._count += 1
                self._weights[weight.names[0]] = range(first, self._count)
                self._index |= dict.fromkeys(weight.names, range(first, self._count))
            yield bucket

    def differing(self, held: Mapping[tuple[str, ...], WeightChecksum]) -> list[str]:
        """The engine's tensors that are not what was sent, by their names, in the order of sending."""
        checksums = [WeightChecksum(bits, squares) for bits, squares in read_checksums(self._found)]
        found: list[tuple[int, str]] = []
        for names, value in held.items():
            parts = {part for name in names for part in self._index.get(name, ())}
            if not parts and value.same_as(NOTHING):  # what was not sent, and is not there
                continue
            complete = all(name in self._index for name in names)
            expected = sum((checksums[part] for part in parts), start=NOTHING)
            if not complete or not value.same_as(expected):
                found.append((min(parts, default=-1), " + ".join(names)))
        return [name for _, name in sorted(found)]

    def fingerprint(self) -> int:
        """One number of all that was sent: another where a bit of any weight is another."""
        return hash(tuple(read_checksums(self._found)))

    def unverified(self, held: Mapping[tuple[str, ...], WeightChecksum]) -> list[str]:
        """What was sent and the engine gives no checksum for, by first names; a stack is named where one expert lacks."""
        verified = {part for names in held for name in names for part in self._index.get(name, ())}
        return [name for name, parts in self._weights.items() if not verified.issuperset(parts)]


def over_group(found: list[Mapping[tuple[str, ...], WeightChecksum]]) -> dict[tuple[str, ...], WeightChecksum]:
    """The checksums of a group of ranks: sharded ones added up; of the others the first that differs from the first rank's, if any does."""
    whole: dict[tuple[str, ...], WeightChecksum] = {}
    for held in found:
        for names, value in held.items():
            if names not in whole:
                whole[names] = value
            elif value.sharded:
                whole[names] = whole[names] + value
            elif value.same_as(found[0].get(names, NOTHING)):
                continue
            else:
                whole[names] = value
    return whole


def first_names(names: list[str]) -> str:
    """The first few, and how many there are in all."""
    more = f" ({len(names)} in all)" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
