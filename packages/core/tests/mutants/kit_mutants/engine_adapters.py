"""Faults of an engine that is given adapters alone, or declares to be deterministic, on `hf`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from kit_mutants.mutant import mutant
from lightrft.engine.hf import HFEngine
from lightrft.plugins.specs import Capability
from lightrft.types import Completion, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket
from lightrft.weights.checksum import WeightChecksum

LAST = "it_computes_with_the_last_adapters_and_no_others"
CHECKSUMS = "checksums_of_adapters_are_of_what_it_computes_with"
BAD = "adapters_that_do_not_fit_are_refused_and_never_half_used"
NAMED = "modules_that_it_cannot_adapt_are_named"

Buckets = Iterable[WeightBucket]


@mutant("hf", "adapters of the sync before last", test=LAST, words="of W + B A they are")
class AdaptersOfBefore(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        sent = [[Weight(w.names, w.tensor.clone()) for w in bucket] for bucket in buckets]
        before, self.__dict__["before"] = self.__dict__.get("before", sent), sent
        super().update_adapters(before, version=version)


@mutant("hf", "alpha is divided by the rank once more", test=LAST, words="another scale")
class ScaledOnceMore(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        scaled = ([Weight(w.names, w.tensor * 2 if "lora_B" in w.names[0] else w.tensor) for w in bucket] for bucket in buckets)
        super().update_adapters(scaled, version=version)


@mutant("hf", "A and B of square matrices are exchanged", test=LAST, words="A and B exchanged")
class AAndBExchanged(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        values = {w.names[0]: w.tensor for bucket in buckets for w in bucket}
        other = {n: n.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B") for n in values}
        changed = dict(values)
        for name, tensor in values.items():
            if other[name] in values and values[other[name]].T.shape == tensor.shape:
                changed[name] = values[other[name]].T
        super().update_adapters([[Weight((n,), t) for n, t in changed.items()]], version=version)


@mutant("hf", "the adapters of one module are left out", test=LAST, words="of another sync or module")
class OneModuleLeftOut(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        super().update_adapters(
            ([w for w in bucket if "layers.0.self_attn.q_proj" not in w.names[0]] for bucket in buckets), version=version
        )


@mutant("hf", "a module of which nothing came keeps its adapter", test=LAST, words="without any of v_proj")
class OldOnesStay(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        held = self.__dict__.setdefault("all", {})
        held |= {w.names[0]: w.tensor.clone() for bucket in buckets for w in bucket}
        super().update_adapters([[Weight((n,), t) for n, t in held.items()]], version=version)


@mutant("hf", "the version is not that of the adapters", test=LAST, words="carry the versions")
class VersionOfTheBase(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        super().update_adapters(buckets, version=0)


@mutant("hf", "checksums of adapters are remembered", test=CHECKSUMS, words="are not those of what was sent")
class RememberedAdapterChecksums(HFEngine):
    def adapter_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        first: Mapping[tuple[str, ...], WeightChecksum] = self.__dict__.setdefault("first", super().adapter_checksums())
        return first


@mutant("hf", "an A without its B is left out in silence", test=BAD, words="an A without its B were accepted")
class HalvesAreLeftOut(HFEngine):
    def update_adapters(self, buckets: Buckets, *, version: int) -> None:
        sent = [w for bucket in buckets for w in bucket]
        names = {w.names[0] for w in sent}
        whole = [w for w in sent if {w.names[0].replace("lora_A", "lora_B"), w.names[0].replace("lora_B", "lora_A")} <= names]
        super().update_adapters([whole], version=version)


@mutant("hf", "every module is said to be adaptable", test=NAMED, words="such as it cannot adapt")
class EverythingIsAdaptable(HFEngine):
    def unadaptable(self, modules: Collection[str]) -> list[str]:
        return []


@mutant(
    "hf",
    "log-probs move by a bit with the size of the batch",
    test="a_completion_depends_on_nothing_else_in_its_batch",
    words="answered otherwise alone",
    declares={Capability.DETERMINISTIC},
)
class MovesWithTheBatch(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        outputs = [super(MovesWithTheBatch, self).generate([request], sampling)[0] for request in requests]
        return [replace(o, completions=tuple(self._moved(c, len(requests)) for c in o.completions)) for o in outputs]

    def _moved(self, completion: Completion, size: int) -> Completion:
        return replace(completion, logprobs=[p - 1e-7 * size for p in completion.logprobs or ()])
