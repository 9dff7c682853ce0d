"""Faults of an engine's weights. One for each class here, on the fake engine and on `hf`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from kit_mutants.mutant import mutant
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket
from lightrft.weights.checksum import WeightChecksum

Outputs = list[RequestOutput]

SYNC = "greedy_tokens_are_those_of_the_model_before_and_after_each_sync"
CACHE = "nothing_computed_with_older_weights_is_used_again"
BAD_WEIGHTS = "weights_that_do_not_fit_are_refused_and_never_half_used"
ARRIVES = "every_tensor_of_a_sync_arrives"
LOGPROBS = "logprobs_are_untempered_unfiltered_and_only_where_asked"
CHECKSUMS = "checksums_are_of_the_tensors_that_it_holds"


@mutant("fake engine", "weights of a sync are read and not used", test=SYNC, words="stale weights")
class StaleWeights(FakeEngine):
    def _hold(self, tensors: Mapping[tuple[str, ...], torch.Tensor]) -> None:
        if not self._weights:
            super()._hold(tensors)


@mutant("fake engine", "the folder's weights are ignored: version 0 is something else", test=SYNC, words="after sync 0")
class NotTheFolder(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._weights = 1


@mutant("fake engine", "a prefix cache that is never reset", test=CACHE, words="stale cache")
class StaleCache(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        cache = self.__dict__.setdefault("cache", {})
        key = (tuple(request.prompt_token_ids), sampling.temperature, request.seed, sample, tuple(tokens))
        return int(cache.setdefault(key, super()._next(request, sampling, sample, tokens)))


@mutant("hf", "a cache of answers that is reset by the first sync only", test=CACHE, words="stale cache")
class CacheResetOnce(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        cache, key = self.__dict__.setdefault("cache", {}), repr((requests, sampling))
        if self._version and key not in cache:
            cache[key] = super().generate(requests, sampling)
        return [*cache[key]] if key in cache and self.status is EngineStatus.AWAKE else super().generate(requests, sampling)


@mutant("fake engine", "half of a fused module: up_proj is not taken over", test=ARRIVES, words="half of a module")
class HalfAFusedModule(FakeEngine):
    def _hold(self, tensors: Mapping[tuple[str, ...], torch.Tensor]) -> None:
        kept = {names: t for names, t in tensors.items() if "up_proj" not in names[0]}
        super()._hold(tensors)
        self._weights = sum(self._checksums[names].bits for names in kept) if self._version else self._weights


@mutant("hf", "half of a fused module: k_proj keeps its old values", test=ARRIVES, words="changes only k_proj.weight")
class HfHalfAFusedModule(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        kept = {n: p.clone() for n, p in self._model.named_parameters() if "layers.0.self_attn.k_proj.weight" in n and not p.is_meta}
        super().update_weights(buckets, version=version)
        self._model.load_state_dict(kept, strict=False)


@mutant("hf", "the embedding is not taken over", test=ARRIVES, words="embed_tokens.weight")
class EmbeddingForgotten(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        kept = self._model.get_input_embeddings().weight.clone()
        super().update_weights(buckets, version=version)
        self._model.get_input_embeddings().weight.data.copy_(kept)


@mutant("fake engine", "keeps the sender's tensors", test="buckets_are_read_once_and_may_be_used_again_by_the_sender", words="copies")
class KeepsTheSendersTensors(FakeEngine):
    def _received(self, weight: Weight) -> torch.Tensor:
        return weight.tensor


@mutant("fake engine", "a load that ignores a missing parameter", test=BAD_WEIGHTS, words="a tensor is missing were accepted")
class MissingIsIgnored(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        return [p for p in super()._problems(sent) if not p.startswith("the actor lacks")]


@mutant("fake engine", "a load that ignores unknown names", test=BAD_WEIGHTS, words="an unknown name were accepted")
class UnknownIsIgnored(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        known = {names: t for names, t in sent.items() if set(names) & self._shapes.keys()}
        return (
            [p for p in super()._problems(known) if not p.startswith("the actor lacks")]
            if len(known) < len(sent)
            else super()._problems(sent)
        )


@mutant("fake engine", "weights of another dtype are cast in silence", test=BAD_WEIGHTS, words="another dtype were accepted")
class DtypeIsIgnored(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        return [p for p in super()._problems(sent) if "another dtype" not in p]


@mutant("fake engine", "refused weights are half in use", test=BAD_WEIGHTS, words="half of them")
class HalfOfRefusedWeights(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        found = super()._problems(sent)
        if found:
            self._hold(sent)
        return found


@mutant("fake engine", "a refusal of weights that names none", test=BAD_WEIGHTS, words="without naming the parameter")
class RefusalWithoutAName(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        return ["they do not fit"] if super()._problems(sent) else []


@mutant("fake engine", "the version is raised by weights that were refused", test=BAD_WEIGHTS, words="carry the version")
class VersionOfRefusedWeights(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        self._version = version
        super().update_weights(buckets, version=version)


@mutant(
    "fake engine", "the version is not raised", test="completions_carry_the_version_of_their_weights", words="carry the weight version [1]"
)
class VersionNotRaised(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=min(version, 1))


@mutant("fake engine", "checksums are remembered from the first sync", test=CHECKSUMS, words="are not those of what was synced")
class RememberedChecksums(FakeEngine):
    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        first: Mapping[tuple[str, ...], WeightChecksum] = self.__dict__.setdefault("first", dict(self._checksums))
        return first


@mutant("fake engine", "declares checksums and gives none", test=CHECKSUMS, words="the checksums of nothing")
class NoChecksums(FakeEngine):
    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        return {}


@mutant("fake engine", "needed shapes are wrong", test="needed_weights_are_named_with_their_shapes", words="weight_shapes has")
class WrongShapes(FakeEngine):
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: (1, *shape) for name, shape in self._shapes.items()}


@mutant("hf", "an unknown parameter beside all known ones is left out in silence", test=BAD_WEIGHTS, words="one too many were accepted")
class OneTooManyIsIgnored(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        known = dict(self._model.named_parameters(remove_duplicate=False)).keys()
        super().update_weights(([w for w in bucket if known & set(w.names)] for bucket in buckets), version=version)


@mutant("hf", "weights are used as they come", test="a_sender_that_fails_half_way_leaves_no_half", words="samples from half of them")
class UsedAsTheyCome(HFEngine):
    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        def used() -> Iterable[WeightBucket]:
            mine = dict(self._model.named_parameters())
            for bucket in buckets:
                for weight in bucket:
                    if weight.names[0] in mine and mine[weight.names[0]].shape == weight.tensor.shape:
                        mine[weight.names[0]].copy_(weight.tensor)
                yield bucket

        super().update_weights(used(), version=version)


def quantised(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Eight bits of it, times the scale."""
    return (tensor / scale).round().clamp(-127, 127) * scale


def scales(engine: HFEngine) -> dict[str, torch.Tensor]:
    """Of an engine's matrices as they are now."""
    return {name: p.abs().amax() / 127 for name, p in engine._model.named_parameters() if p.dim() > 1}


@mutant(
    "hf",
    "weights are quantised as they come, and their checksums are those of what came",
    test="every_tensor_of_a_sync_arrives",
    words="does not change what the engine samples from",
)
class QuantisedUnseen(HFEngine):
    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=version)
        self.__dict__["checksums"] = super().weight_checksums()
        for name, scale in scales(self).items():
            parameter = self._model.get_parameter(name)
            parameter.copy_(quantised(parameter, scale))

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        return self.__dict__.get("checksums") or super().weight_checksums()


@mutant("hf", "weights are quantised again with the scale of the folder's", test=CHECKSUMS, words="are not those of what was synced")
class QuantisedWithTheOldScale(HFEngine):
    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        old = self.__dict__.setdefault("scales", scales(self) if self._weights_held else {})
        super().update_weights(buckets, version=version)
        for name, scale in old.items():
            parameter = self._model.get_parameter(name)
            parameter.copy_(quantised(parameter, scale))


@mutant("hf", "the scales are new, the codes are those of the sync before", test=SYNC, words="stale weights")
class NewScalesOldCodes(HFEngine):
    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        held = {name: self._model.get_parameter(name).clone() / scale for name, scale in scales(self).items()} if self._weights_held else {}
        super().update_weights(buckets, version=version)
        for name, scale in scales(self).items():
            if name in held:
                self._model.get_parameter(name).copy_(held[name] * scale)
