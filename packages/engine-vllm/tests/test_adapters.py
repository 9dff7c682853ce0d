"""vLLM is given adapters alone. Tokens of transformers and peft before and after syncs, nothing else leaves, a fault is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import WeightSyncError
from lightrft.models.load import load_causal_lm
from lightrft.models.lora import add_lora
from lightrft.plugins.registry import Registry
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.hooks import AdamWSettings
from lightrft.testing.engine_bench import requests_of
from lightrft.testing.engine_scenario import judge_of
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.judge import greedy_tokens, logprob_error
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import Family, tiny_model_folder
from lightrft.types import EngineStatus, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket

PROMPTS = [[3, 4, 5], [3 + (7 * i) % 50 for i in range(200)], [3 + (7 * i) % 50 for i in range(300)]]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
RANK = 3
"""None of vLLM's: what is left of its 8 is filled up."""


class Bench:
    """A strategy of one process, a tiny actor with adapters and vLLM beside it."""

    def __init__(self, folder: Path, family: Family, way: str, targets: list[str]) -> None:
        tiny_model_folder(folder, family=family)
        settings = {"prompt_max_len": 320, "generate_max_len": 16, "enable_engine_sleep": False, "lora_rank": RANK, "lora_sync": way}
        config = make_config({"strategy": "fake", "engine_type": "vllm", "model_name_or_path": str(folder), **settings})
        self.strategy = get_strategy(config, registry=fake_registry(Registry.discover().spec("engine", "vllm")))
        self.strategy.setup_inference_engine(config)
        model = load_causal_lm(folder, dtype=torch.float32)
        self.actor: Any = add_lora(model, rank=RANK, alpha=7.0, target_modules=targets, seed=1)
        self.turn = 0

    @property
    def engine(self) -> Any:
        return self.strategy.inference_engine

    def change(self) -> None:
        self.turn += 1
        generator = torch.Generator().manual_seed(self.turn)
        with torch.no_grad():
            for name, parameter in self.actor.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))

    def wrong(self) -> tuple[list[int], float]:
        """Prompts whose greedy tokens are not those of transformers with peft, and the largest difference of log-probs."""
        outputs = self.engine.generate(requests_of(PROMPTS), GREEDY)
        found = [list(o.completions[0].token_ids) for o in outputs]
        expected = [greedy_tokens(self.actor, prompt, max_new_tokens=8) for prompt in PROMPTS]
        wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a[: len(b)] != b]
        return wrong, max(logprob_error(self.actor, o, o.completions[0]) for o in outputs)


pytestmark = pytest.mark.long


@pytest.fixture(params=["qwen3", "qwen2", "llama"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param, "adapters", ["all-linear"])
    yield bench
    bench.strategy.shutdown()


def test_tokens_are_those_of_transformers_and_peft_before_and_after_syncs(bench: Bench) -> None:
    assert bench.wrong()[0] == [] and bench.wrong()[1] < 1e-5  # adapters that are worth nothing yet
    for sync in (1, 2, 3):
        bench.change()
        assert bench.wrong()[0], "the change shows"
        bench.strategy.update_engine_weights(bench.actor)
        assert bench.wrong()[0] == [] and bench.wrong()[1] < 1e-5
        adapters = [p for name, p in bench.actor.named_parameters() if "lora_" in name]
        assert bench.strategy.synced_bytes == 4 * sum(p.numel() for p in adapters)
        assert bench.strategy.unverified_weights == [] and bench.strategy.weight_version == sync
        assert len(bench.engine.adapter_checksums()) == len(adapters)
    faults(bench)
    whole(bench)


def faults(bench: Bench) -> None:
    """What arrives otherwise than it was sent is named; a prefix cache of the sync before is not used."""
    for spoil, named in ((half, "lora_B"), (exchanged, "layers.0.*lora_A"), (without_k, "k_proj.lora_A"), (stale, "lora_A")):
        bench.change()
        put = type(bench.engine).update_adapters
        old = {
            w.names[0]: w.tensor.clone() for bucket in bench.strategy._adapter_export(bench.actor).adapters(torch.float32) for w in bucket
        }
        bench.change()

        def changed(buckets: Any, *, version: int, spoil: Any = spoil, old: Any = old, put: Any = put) -> None:
            put(bench.engine, [spoil([w for bucket in buckets for w in bucket], old)], version=version)

        bench.engine.update_adapters = changed
        with pytest.raises(WeightSyncError, match=f"checksum differs of .*{named}"):
            bench.strategy.update_engine_weights(bench.actor)
        del bench.engine.update_adapters
        bench.strategy._controller._status = EngineStatus.AWAKE  # type: ignore[union-attr]
        bench.engine._version = bench.strategy.weight_version
    bench.strategy.update_engine_weights(bench.actor)
    assert bench.wrong()[0] == []


def whole(bench: Bench) -> None:
    """A model without adapters takes them off; with them again all is as before."""
    plain = load_causal_lm(bench.strategy.config.model_name_or_path, dtype=torch.float32)
    bench.strategy.update_engine_weights(plain)
    actor, bench.actor = bench.actor, plain
    assert bench.wrong()[0] == [] and bench.wrong()[1] < 1e-5
    bench.actor = actor
    bench.strategy.update_engine_weights(actor)
    assert bench.wrong()[0] == [] and bench.wrong()[1] < 1e-5


def half(sent: WeightBucket, old: Any) -> WeightBucket:
    return [Weight(w.names, w.tensor / 2 if "lora_B" in w.names[0] else w.tensor) for w in sent]


def exchanged(sent: WeightBucket, old: Any) -> WeightBucket:
    values = {w.names[0]: w.tensor for w in sent}
    return [Weight(w.names, values[w.names[0].replace("layers.0", "layers.1")]) for w in sent]


def without_k(sent: WeightBucket, old: Any) -> WeightBucket:
    return [w for w in sent if "k_proj" not in w.names[0]]


def stale(sent: WeightBucket, old: Any) -> WeightBucket:
    return [Weight(w.names, old[w.names[0]]) for w in sent]


def test_some_layers_alone_and_merged_weights_answer_alike(tmp_path: Path) -> None:
    found = {}
    for way in ("merged", "adapters"):
        bench = Bench(tmp_path / way, "qwen3", way, ["q_proj", "v_proj", "down_proj"])
        try:
            bench.change()
            bench.strategy.update_engine_weights(bench.actor)
            wrong, found[way] = bench.wrong()
            assert wrong == [] and bench.strategy.differing_engine_weights(bench.actor) == []
        finally:
            bench.strategy.shutdown()
    assert max(found.values()) < 1e-5


def on_ranks(folder: str, settings: dict[str, Any]) -> tuple[list[bool], float, list[str], int]:
    """Of two syncs on this rank: whether tokens are those of peft's model, the largest gap, what was not verified, the bytes sent."""
    lengths = {"prompt_max_len": 320, "generate_max_len": 16, "enable_engine_sleep": False, "lora_rank": RANK, "lora_sync": "adapters"}
    config = make_config({"engine_type": "vllm", "model_name_or_path": folder, **lengths, **settings})
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    adapted = add_lora(load_causal_lm(folder, dtype=torch.float32), rank=RANK, alpha=7.0, target_modules=["all-linear"], seed=1)
    actor, optimizer = strategy.prepare_trainable(adapted, optimizer=AdamWSettings(learning_rate=5e-2))
    right, gaps, unverified = [], [], []
    for step in (1, 2):
        ids = torch.tensor([[3, 4, 5, 6 + strategy.world.rank]])
        strategy.accumulate([ids], lambda batch: actor(input_ids=batch).logits.float().logsumexp(-1).sum() / 8, actor, optimizer)
        strategy.optimizer_step(optimizer, actor, None)
        strategy.update_engine_weights(actor)
        judge = judge_of(strategy, actor, folder)
        prompts = PROMPTS[: 2 - strategy.world.rank]
        for prompt, output in zip(prompts, strategy.gather_and_generate(GREEDY, all_prompt_token_ids=prompts, logprobs=True), strict=True):
            expected = greedy_tokens(judge, prompt, max_new_tokens=8)
            right.append(list(output.completions[0].token_ids)[: len(expected)] == expected)
            gaps.append(logprob_error(judge, output, output.completions[0]))
        unverified += strategy.unverified_weights
        assert strategy.differing_engine_weights(actor) == [] and strategy.weight_version == step
    synced = strategy.synced_bytes
    strategy.shutdown()
    return right, max(gaps), unverified, synced


@pytest.mark.parametrize(
    ("kv_heads", "settings"),
    [
        (1, {"strategy": "fsdp", "engine_tp_size": 2}),  # both ranks hold the only key-value head
        (2, {"strategy": "deepspeed", "zero_stage": 3, "engine_tp_size": 2}),
        (2, {"strategy": "deepspeed", "zero_stage": 2}),
    ],
)
def test_two_ranks_hold_the_adapters_of_both(tmp_path: Path, kv_heads: int, settings: dict[str, Any]) -> None:
    folder = tiny_model_folder(tmp_path / "model", kv_heads=kv_heads)
    expected = sum(p.numel() for n, p in add_lora(
        load_causal_lm(folder, dtype=torch.float32), rank=RANK, alpha=7.0, target_modules=["all-linear"], seed=1
    ).named_parameters() if "lora_" in n)  # fmt: skip
    for right, gap, unverified, synced in run_spmd(on_ranks, 2, str(folder), settings, timeout_s=240.0):
        assert all(right) and gap < 1e-5 and synced == 4 * expected
        assert unverified == [] or (settings.get("engine_tp_size") == 2 and kv_heads == 1)  # key-value heads of the base on both ranks


@pytest.mark.parametrize("method", ["get_rename_mapper", "get_unstacked_mapper"])
def test_a_module_keeps_its_name_where_a_version_of_vllm_maps_it_to_the_fused_one(method: str) -> None:
    """vLLM 0.25's mapper says `qkv_proj` of `q_proj` unless it is asked for its unstacked half, 0.32's for its renaming half."""
    from lightrft_vllm.adapters import unadaptable

    plain = SimpleNamespace(_map_name=lambda name: name)
    fusing = SimpleNamespace(_map_name=lambda name: name.replace("q_proj", "qkv_proj"), **{method: lambda: plain})
    packed = {"model.attn.qkv_proj": ["model.attn.q_proj"]}
    manager = SimpleNamespace(modules={"model.attn.qkv_proj": None}, packed_modules=packed)
    model = SimpleNamespace(hf_to_vllm_mapper=fusing, lora_manager=manager)
    assert unadaptable(model, modules=["model.attn.q_proj", "model.attn.strange"]) == ["model.attn.strange"]
