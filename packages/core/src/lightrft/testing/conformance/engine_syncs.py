"""Requirements of a sync: all weights arrive, and weights that do not fit are refused whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import pytest
import torch

from lightrft.errors import CapabilityError, EngineStateError, WeightSyncError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of, weights_of
from lightrft.types import EngineStatus
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.checksum import WeightChecksum, tensor_checksum

FAULTS = ("a tensor is missing", "one too many", "an unknown name", "another shape", "another dtype")


class Syncs(EngineKit, kit=True):
    """What a sync brings."""

    @requirement("update_weights")
    @pytest.mark.parametrize("fault", FAULTS)
    def test_weights_that_do_not_fit_are_refused_and_never_half_used(self, bench: EngineBench, fault: str) -> None:
        """A WeightSyncError that names the parameter; the old weights stay whole, or the engine is UNUSABLE and refuses to generate"""
        other = bench.models[1] if bench.model is not bench.models[1] else bench.models[2]
        try:
            bench.engine.update_weights(spoilt(weights_of(other), fault), version=bench.version + 1)
        except WeightSyncError as error:
            assert "down_proj" in str(error), (
                f"weights of which {fault} are refused without naming the parameter, a down_proj: {str(error)!r}"
            )
        else:
            bench.close()
            raise AssertionError(f"weights of which {fault} were accepted without a word")
        self._old_or_unusable(bench, f"weights were refused ({fault})")

    @requirement("update_weights")
    def test_a_sender_that_fails_half_way_leaves_no_half(self, bench: EngineBench) -> None:
        """An error out of the iterator of buckets comes through; the old weights stay whole, or the engine is UNUSABLE"""
        other = bench.models[1] if bench.model is not bench.models[1] else bench.models[2]

        def failing() -> Iterator[WeightBucket]:
            yield weights_of(other)[0]
            raise ConnectionResetError("the sender is gone")

        try:
            bench.engine.update_weights(failing(), version=bench.version + 1)
        except Exception:
            self._old_or_unusable(bench, "the sender failed after half of the weights")
            return
        bench.close()
        raise AssertionError("update_weights returned although its sender failed half-way: the engine holds half of the weights")

    @requirement("update_weights")
    def test_buckets_are_read_once_and_may_be_used_again_by_the_sender(self, bench: EngineBench) -> None:
        """However many there are: a bucket's tensors may be views, and may be overwritten as soon as the next bucket is asked for"""

        def overwritten() -> Iterator[WeightBucket]:
            for weight in (w for bucket in weights_of(bench.models[2]) for w in bucket):
                sent = (
                    weight.tensor.mT.clone(memory_format=torch.contiguous_format).mT if weight.tensor.dim() > 1 else weight.tensor.clone()
                )
                yield [replace(weight, tensor=sent)]
                sent.fill_(float("nan"))

        bench.engine.update_weights(overwritten(), version=bench.version + 1)
        bench.engine.reset_cache()
        bench.version, bench.model = bench.version + 1, bench.models[2]
        found = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY))
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert found == expected, (
            "after a sync of one tensor a bucket, each overwritten once the next was asked for, answers are not the model's: the engine "
            "keeps the sender's tensors instead of copies, keeps only some buckets, or reads a view as if its memory had no gaps"
        )

    @requirement("update_weights")
    def test_every_tensor_of_a_sync_arrives(self, bench: EngineBench) -> None:
        """One parameter of another value changes what the engine answers or holds: fused and tied ones, each by itself"""
        bench.sync(bench.models[0])
        for ending in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "embed_tokens.weight"):
            changed = bench.changed_in(ending)
            bench.sync(changed)
            found = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY))
            expected = [[bench.greedy(p)] for p in bench.prompts]
            assert found == expected, f"a sync that changes only {ending} does not change what the engine samples from: half of a module"

    @requirement("weight_shapes")
    def test_needed_weights_are_named_with_their_shapes(self, bench: EngineBench) -> None:
        """Names and full shapes of what `update_weights` needs, as the folder has them; or nothing where that is not known"""
        found = dict(bench.engine.weight_shapes())
        known = {name: tuple(w.tensor.shape) for bucket in weights_of(bench.model) for w in bucket for name in w.names}
        wrong = [name for name, shape in found.items() if known.get(name) != tuple(shape)]
        assert not wrong, f"weight_shapes has {wrong[0]} as {found[wrong[0]]}, the model has {known.get(wrong[0])}"
        firsts = [w.names for bucket in weights_of(bench.model) for w in bucket]
        lacking = [names[0] for names in firsts if found and not set(names) & found.keys()]
        assert not lacking, f"weight_shapes lacks {', '.join(lacking[:3])}: a sync without it would not be stopped"

    @requirement("weight_checksums", needs=Capability.WEIGHT_CHECKSUMS)
    def test_checksums_are_of_the_tensors_that_it_holds(self, bench: EngineBench) -> None:
        """`weight_checksums`: of every tensor, as it was sent in the last sync; without the capability a CapabilityError"""
        if not bench.can(Capability.WEIGHT_CHECKSUMS):
            with pytest.raises(CapabilityError):
                bench.engine.weight_checksums()
            return
        for model in (bench.models[1], bench.models[2]):
            bench.sync(model)
            held = bench.engine.weight_checksums()
            sent = {name: WeightChecksum(*tensor_checksum(w.tensor)) for bucket in weights_of(model) for w in bucket for name in w.names}
            wrong = [
                " + ".join(names)
                for names, value in held.items()
                if not value.same_as(sum((sent[n] for n in _once(names, bench)), start=WeightChecksum(0, 0)))
            ]
            assert held and not wrong, (
                f"the checksums of {', '.join(wrong[:3]) or 'nothing'} are not those of what was synced ({len(held)} tensors)"
            )

    def _old_or_unusable(self, bench: EngineBench, what: str) -> None:
        """Raises AssertionError where the engine is of neither kind."""
        if bench.engine_as_it_is.status is EngineStatus.UNUSABLE:
            with pytest.raises(EngineStateError):
                bench.engine_as_it_is.generate(requests_of([bench.short], logprobs=False), GREEDY)
            return
        self._is(bench, EngineStatus.AWAKE, what)
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY)
        expected = [[bench.greedy(p)] for p in bench.prompts]
        versions = {c.weight_version for o in outputs for c in o.completions}
        wrong = tokens(outputs) != expected
        if wrong or versions != {bench.version}:
            bench.close()
        assert not wrong, f"after {what} the engine samples from half of them, and says it is awake"
        assert versions == {bench.version}, f"after {what} completions carry the version {versions}"


def _once(names: Collection[str], bench: EngineBench) -> list[str]:
    """One name of each tensor among these: names of a tied one count once."""
    groups = [w.names for bucket in weights_of(bench.model) for w in bucket]
    return [next(n for n in names if n in group) for group in groups if set(names) & set(group)]


def spoilt(buckets: list[WeightBucket], fault: str) -> list[WeightBucket]:
    """The same buckets with one fault, in the first layer's down_proj."""
    name = "model.layers.0.mlp.down_proj.weight"
    kept = []
    for bucket in buckets:
        changed: WeightBucket = []
        for weight in bucket:
            if weight.names[0] != name:
                changed.append(weight)
            elif fault == "one too many":
                changed += [weight, replace(weight, names=(name.replace("layers.0", "layers.9"),))]
            elif fault == "an unknown name":
                changed.append(replace(weight, names=(name.replace("layers.0", "layers.9"),)))
            elif fault == "another shape":
                changed.append(replace(weight, tensor=weight.tensor[:-1]))
            elif fault == "another dtype":
                changed.append(replace(weight, tensor=weight.tensor.to(torch.bfloat16)))
        kept.append(changed)
    return kept
