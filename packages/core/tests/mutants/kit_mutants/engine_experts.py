"""Faults of an engine's experts, on `hf`: each is right as a whole, and by the checksums of the whole as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from kit_mutants.mutant import mutant
from lightrft.engine.hf import HFEngine
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.checksum import WeightChecksum
from lightrft.weights.experts import is_stack

PLACE = "every_expert_arrives_in_its_place"

Change = Callable[[str, torch.Tensor], torch.Tensor]


def with_experts(buckets: Iterable[WeightBucket], change: Change) -> Iterable[WeightBucket]:
    """The same, with stacked experts changed."""
    for bucket in buckets:
        yield [replace(w, tensor=change(w.names[0], w.tensor)) if is_stack(w.names[0], w.tensor.dim()) else w for w in bucket]


@mutant("hf", "two experts of a sync are exchanged", test=PLACE, words="of another place")
class ExpertsExchanged(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(with_experts(buckets, lambda name, stack: stack[[1, 0, *range(2, len(stack))]]), version=version)


@mutant("hf", "the experts' places are those of the first sync", test=PLACE, words="two of them exchanged")
class PlacesOfTheFirstSync(HFEngine):
    """Experts that are known by their checksums stay where they are."""

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        def kept(name: str, stack: torch.Tensor) -> torch.Tensor:
            held = self._held()[name]
            return held.clone() if torch.equal(held.flatten().sort().values, stack.flatten().sort().values) else stack

        super().update_weights(with_experts(buckets, kept), version=version)


@mutant("hf", "the third expert keeps its older weights", test=PLACE, words="experts that stayed")
class OneExpertStale(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        def kept(name: str, stack: torch.Tensor) -> torch.Tensor:
            places = (torch.arange(len(stack)) == 2).view(-1, *[1] * (stack.dim() - 1))
            return torch.where(places, self._held()[name], stack)

        super().update_weights(with_experts(buckets, kept), version=version)


@mutant("hf", "checksums of experts are remembered", test=PLACE, words="are not those of what was synced")
class RememberedExpertSums(HFEngine):
    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        found = super().weight_checksums()
        experts = {names: value for names, value in found.items() if ".experts." in names[0]}
        return {**found, **self.__dict__.setdefault("first", experts)}
