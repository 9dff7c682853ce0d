"""Requirements of an engine that is given adapters alone: it computes with the last ones, and refuses those that do not fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lightrft.errors import CapabilityError, WeightSyncError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit, Record, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of
from lightrft.types import EngineStatus
from lightrft.weights.adapters import adapter_names, matrices_of
from lightrft.weights.buckets import Weight, WeightBucket
from lightrft.weights.checksum import WeightChecksum, tensor_checksum

RANK = 3
"""Of the kit's adapters: no power of two, which engines that have room for some ranks alone fill up."""

LAYER = "model.layers.1.self_attn.o_proj"
FAULTS = ("another shape", "an A without its B", "a module that it does not have", "another rank", "another dtype")


class Adapters(EngineKit, kit=True):
    """`update_adapters`, `adapter_checksums` and `unadaptable`, where the spec declares `adapters`."""

    @requirement("update_adapters", needs=Capability.ADAPTERS)
    def test_it_computes_with_the_last_adapters_and_no_others(self, bench: EngineBench, record_property: Record) -> None:
        """After each sync of adapters tokens and log-probs are those of W + B A, of the folder's W and of that sync's A and B alone; a
        module of which nothing came has none
        """
        if not self._declared(bench, Capability.ADAPTERS, record_property):
            return
        self._restarted(bench)
        long = [bench.filling(length) for length in bench.cache_lengths()]
        for seed, left_out in ((1, ""), (2, ""), (3, "v_proj"), (4, "mlp")):
            self._given(bench, seed, left_out=left_out)
            prompts = [*bench.prompts, *long]
            outputs = bench.engine.generate(requests_of(prompts, logprobs=bench.can(Capability.LOGPROBS)), GREEDY)
            found, expected = tokens(outputs), [[bench.greedy(prompt)] for prompt in prompts]
            kept = f"without any of {left_out}" if left_out else "of all linear layers"
            assert found == expected, (
                f"after sync {seed} of adapters ({kept}) greedy tokens are {found}, of W + B A they are {expected}: adapters of another "
                "sync or module, another scale, A and B exchanged, or a stale cache"
            )
            for output in outputs if bench.can(Capability.LOGPROBS) else ():
                bench.judge_logprobs(output, output.completions[0], GREEDY, bound=FP32_ERROR)
            versions = {c.weight_version for o in outputs for c in o.completions}
            assert versions == {bench.version}, f"completions carry the versions {versions} after adapters of version {bench.version}"

    @requirement("adapter_checksums", needs=Capability.ADAPTERS)
    def test_checksums_of_adapters_are_of_what_it_computes_with(self, bench: EngineBench) -> None:
        """`adapter_checksums`: of A and B of every module, as they came in the last sync; without the capability a CapabilityError"""
        if not bench.can(Capability.ADAPTERS) or not bench.can(Capability.WEIGHT_CHECKSUMS):
            if not bench.can(Capability.ADAPTERS):
                with pytest.raises(CapabilityError):
                    bench.engine.adapter_checksums()
            return
        self._restarted(bench)
        for seed in (5, 6):
            sent = self._given(bench, seed)
            held = bench.engine.adapter_checksums()
            expected = {weight.names: WeightChecksum(*tensor_checksum(weight.tensor)) for weight in sent}
            wrong = [name for (name,), value in expected.items() if not value.same_as(held.get((name,), WeightChecksum(0, 0)))]
            assert not wrong, f"the checksums of {', '.join(wrong[:3])} ({len(wrong)} of {len(sent)}) are not those of what was sent"

    @requirement("update_adapters", needs=Capability.ADAPTERS)
    @pytest.mark.parametrize("fault", FAULTS)
    def test_adapters_that_do_not_fit_are_refused_and_never_half_used(self, bench: EngineBench, fault: str) -> None:
        """A WeightSyncError that names the module; the old adapters stay, or the engine is UNUSABLE"""
        if not bench.can(Capability.ADAPTERS):
            with pytest.raises(CapabilityError):
                bench.engine.update_adapters([], version=bench.version)
            return
        self._restarted(bench)
        self._given(bench, 7)
        try:
            bench.engine.update_adapters([_spoilt(_adapters(bench, 8), fault)], version=bench.version + 1)
        except WeightSyncError as error:
            assert "o_proj" in str(error), f"adapters with {fault} are refused without naming the module, an o_proj: {str(error)!r}"
        else:
            bench.close()
            raise AssertionError(f"adapters with {fault} were accepted without a word")
        if bench.engine_as_it_is.status is EngineStatus.UNUSABLE:
            return
        found = tokens(bench.engine.generate(requests_of([bench.short], logprobs=False), GREEDY))
        assert found == [[bench.greedy(bench.short)]], f"after adapters with {fault} were refused it computes with half of them"

    @requirement("unadaptable", needs=Capability.ADAPTERS)
    def test_modules_that_it_cannot_adapt_are_named(self, bench: EngineBench) -> None:
        """Those of the modules in question, and no others"""
        if not bench.can(Capability.ADAPTERS):
            with pytest.raises(CapabilityError):
                bench.engine.unadaptable([LAYER])
            return
        self._restarted(bench)
        strange = [LAYER.replace("layers.1", "layers.9"), "no.such.layer"]
        found = bench.engine.unadaptable([strange[0], *_modules(bench), strange[1]])
        assert found == strange, f"of {strange} and the model's linear layers {found} are said to be such as it cannot adapt"

    def _restarted(self, bench: EngineBench) -> None:
        """With room for adapters, and the folder's weights under them."""
        if not bench.engine.setup.adapter_rank or bench.version > bench.adapter_syncs:
            bench.restart(adapter_rank=RANK)

    def _given(self, bench: EngineBench, seed: int, *, left_out: str = "-") -> list[Weight]:
        """Adapters of that seed for all linear layers but those `left_out`; the judge's model has them merged."""
        sent = [w for w in _adapters(bench, seed) if not left_out or left_out not in w.names[0]]
        bench.version, bench.adapter_syncs = bench.version + 1, bench.version + 1
        bench.engine.update_adapters([sent[: len(sent) // 2], sent[len(sent) // 2 :]], version=bench.version)
        bench.engine.reset_cache()
        bench.model = _merged(bench.models[0], sent)
        return sent


def _modules(bench: EngineBench) -> list[str]:
    return [name for name in matrices_of(bench.models[0]) if "layers." in name]


def _adapters(bench: EngineBench, seed: int) -> list[Weight]:
    """A and B of every linear layer, of the size of the layer's own values."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for name, (rows, columns) in matrices_of(bench.models[0]).items():
        if "layers." in name:
            for part, shape in zip(adapter_names(name), ((RANK, columns), (rows, RANK)), strict=True):
                weights.append(Weight((part,), 0.3 * torch.randn(shape, generator=generator)))
    return weights


@torch.no_grad()
def _merged(model: Any, sent: list[Weight]) -> Any:
    merged = copy.deepcopy(model)
    values = {weight.names[0]: weight.tensor for weight in sent}
    for name in matrices_of(model):
        a, b = (values.get(part) for part in adapter_names(name))
        if a is not None and b is not None:
            merged.get_submodule(name).weight += b @ a
    return merged


def _spoilt(sent: list[Weight], fault: str) -> WeightBucket:
    """The same with one fault at `LAYER`."""
    a, b = adapter_names(LAYER)
    kept = {w.names[0]: w.tensor for w in sent}
    if fault == "another shape":
        kept[b] = kept[b][:-1]
    elif fault == "an A without its B":
        del kept[b]
    elif fault == "a module that it does not have":
        kept = {name.replace("layers.1.self_attn.o_proj", "layers.9.self_attn.o_proj"): tensor for name, tensor in kept.items()}
    elif fault == "another rank":
        kept[a], kept[b] = torch.cat([kept[a]] * 4), torch.cat([kept[b]] * 4, dim=1)
    else:
        kept[a] = kept[a].to(torch.bfloat16)
    return [Weight((name,), tensor) for name, tensor in kept.items()]
