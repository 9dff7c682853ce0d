"""Fixed prompts find an engine that does not answer as the actor, name why, and say nothing of one that does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.diagnostics.logprob_agreement import Gap
from lightrft.diagnostics.sync_probe import SyncProbe, probe_prompts, rotated
from lightrft.engine.hf import HFEngine
from lightrft.engine.rounding import FP32_CPU, bound_for
from lightrft.errors import ModelError, WeightSyncError
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


class CachedEngine(HFEngine):
    """Has a cache of whole answers and forgets to reset it."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        self.__dict__.setdefault("cache", {})
        for output in super().generate(requests, sampling):
            self.cache.setdefault(tuple(output.prompt_token_ids), output.completions)  # type: ignore[attr-defined]  # set above
        return [
            RequestOutput(
                id=r.id,
                prompt_token_ids=r.prompt_token_ids,
                completions=tuple(replace(c, weight_version=self._version) for c in self.cache[tuple(r.prompt_token_ids)]),  # type: ignore[attr-defined]
            )
            for r in requests
        ]


class LateEngine(CachedEngine):
    """Resets that cache, but not with the first reset after an update."""

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=version)
        self.resets = 0

    def reset_cache(self) -> None:
        super().reset_cache()
        self.resets += 1
        if self.resets > 1:
            self.__dict__["cache"] = {}


class BlockCachedEngine(HFEngine):
    """Finds in its cache what has a whole block of 256 tokens, before and after a sync, and nothing shorter."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        fresh = super().generate(requests, sampling)
        kept: dict[tuple[int, ...], Any] = self.__dict__.setdefault("kept", {})
        outputs = [
            replace(o, completions=kept.setdefault(tuple(o.prompt_token_ids), o.completions)) if len(o.prompt_token_ids) >= 256 else o
            for o in fresh
        ]
        return [replace(o, completions=tuple(replace(c, weight_version=self._version) for c in o.completions)) for o in outputs]


class StaleEngine(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        for _ in buckets:
            pass
        self._version = version


class HalfEngine(HFEngine):
    """Leaves one projection of a layer as it was, and hides that from the checksums at the sync."""

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        old = {name: p.clone() for name, p in self.model.named_parameters()}
        kept = "model.layers.1.mlp.up_proj.weight"
        sent = [Weight(w.names, old[kept] if w.names[0] == kept else w.tensor) for bucket in buckets for w in bucket]
        super().update_weights([sent], version=version)


def planted(name: str, *, checksums: bool) -> EngineSpec:
    capabilities = HF_CAPABILITIES if checksums else HF_CAPABILITIES - {Capability.WEIGHT_CHECKSUMS}
    return EngineSpec(name="planted", target=f"{__name__}:{name}", capabilities=capabilities)


def make(folder: Path, spec: EngineSpec | None, *, verify: bool = True, context: int = 208) -> tuple[Any, SyncProbe]:
    config = make_config(
        dict(strategy="single", engine_type="planted" if spec else "hf", prompt_max_len=context - 8, generate_max_len=8, seed=1)
        | ({} if verify else {"verify_sync_every": 0})
    )
    strategy = get_strategy(config, registry=fake_registry(*([spec] if spec else [])))
    strategy.setup_inference_engine(config, model_path=str(tiny_model_folder(folder, seed=2)))
    actor, _ = strategy.prepare_trainable(tiny_causal_lm(seed=2), optimizer=AdamWSettings(learning_rate=1e-2))
    return strategy, SyncProbe(strategy=strategy, actor=actor, config=config, prompts=PROMPTS, tokenizer=tiny_tokenizer())


@torch.no_grad()
def change(actor: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in actor.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def verified_sync(strategy: Any, probe: SyncProbe) -> dict[str, float]:
    probe.before_sync()
    strategy.update_engine_weights(probe.actor)
    return probe.after_sync()


def test_an_honest_engine_is_verified_after_each_sync(tmp_path: Path) -> None:
    strategy, probe = make(tmp_path, None)
    for _ in range(3):
        metrics = verified_sync(strategy, probe)
        assert metrics["verify/gap"] < FP32_CPU.mean / 10 and metrics["verify/gap_max"] < FP32_CPU.largest / 10
        assert metrics["time/verify_s"] > 0
        change(probe.actor)


@pytest.mark.parametrize(
    ("where", "words"), [("weights", r"first in model.layers.0.mlp.up_proj.weight \(1 in all\)"), ("epsilon", "config.json")]
)
def test_a_model_that_gives_no_numbers_is_told_as_what_it_is(tmp_path: Path, where: str, words: str) -> None:
    strategy, probe = make(tmp_path, None)
    actor: Any = probe.actor
    with torch.no_grad():
        if where == "weights":
            actor.model.layers[0].mlp.up_proj.weight[3, 4] = float("nan")
        else:
            actor.model.norm.variance_epsilon = float("nan")
    with pytest.raises(ModelError, match=f"the model's own log-probs of fixed prompts are NaN, whatever the engine answers: .*{words}"):
        verified_sync(strategy, probe)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("CachedEngine", "prompts that it was never asked agree .* from a cache of older weights that a reset leaves"),
        ("LateEngine", "once its caches are reset, the same prompts agree, so it answered from a cache of older weights"),
    ],
)
def test_a_cache_that_is_not_reset_is_named(tmp_path: Path, engine: str, words: str) -> None:
    strategy, probe = make(tmp_path, planted(engine, checksums=True))
    verified_sync(strategy, probe)
    change(probe.actor)
    with pytest.raises(WeightSyncError, match=words):
        verified_sync(strategy, probe)


def test_a_stale_block_of_256_tokens_is_found_where_the_context_has_room_for_one(tmp_path: Path) -> None:
    strategy, probe = make(tmp_path, planted("BlockCachedEngine", checksums=True), context=320)
    verified_sync(strategy, probe)
    change(probe.actor)
    with pytest.raises(WeightSyncError, match="prompts that it was never asked agree"):
        verified_sync(strategy, probe)


def test_stale_weights_are_found_without_checksums(tmp_path: Path) -> None:
    strategy, probe = make(tmp_path, planted("StaleEngine", checksums=False))
    verified_sync(strategy, probe)
    change(probe.actor)
    with pytest.raises(WeightSyncError, match="after sync 2: .* gives no checksums of its weights"):
        verified_sync(strategy, probe)


def test_the_first_tensor_is_named_where_checksums_can_tell(tmp_path: Path) -> None:
    # the checksums at the sync are switched off, as if the tensor had changed after it
    strategy, probe = make(tmp_path, planted("HalfEngine", checksums=True), verify=False)
    change(probe.actor)
    with pytest.raises(WeightSyncError, match=r"the first tensor that differs is model.layers.1.mlp.up_proj.weight \(1 in all\)"):
        verified_sync(strategy, probe)


def test_the_prompts_span_a_cache_block_and_fit_the_context() -> None:
    prompts = probe_prompts(PROMPTS, special_ids=[7], block=0, longest=200, seed=1)
    assert [len(p) for p in prompts] == [3, 5, 160, 200]
    assert prompts == probe_prompts(PROMPTS, special_ids=[7], block=0, longest=200, seed=1)
    assert {t for p in prompts[2:] for t in p} == {5, 6, 8, 9, 10, 11, 12}
    lengths = {
        (block, longest): [len(p) for p in probe_prompts(PROMPTS, special_ids=[], block=block, longest=longest, seed=1)[2:]]
        for block, longest in ((0, 16), (16, 4096), (1100, 4096), (1100, 2100))
    }
    assert lengths == {(0, 16): [16, 16], (16, 4096): [160, 2000], (1100, 4096): [160, 2201], (1100, 2100): [160, 2100]}
    assert all(a[0] != b[0] and sorted(a) == sorted(b) for a, b in zip(prompts, rotated(prompts), strict=True))
    assert rotated([[4, 4]]) == []


def test_bounds_and_numbers_that_are_none() -> None:
    assert bound_for(torch.float32, device_type="cpu") == FP32_CPU
    assert bound_for(torch.bfloat16, device_type="cpu") == bound_for(torch.bfloat16, device_type="cuda")
    assert Gap(1e-5, 1e-4).within(FP32_CPU)
    assert not Gap(1e-5, 1.0).within(FP32_CPU)
    assert not Gap(float("nan"), float("nan")).within(FP32_CPU)
