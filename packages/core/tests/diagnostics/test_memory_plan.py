"""`lightrft plan` against what CPU runs hold, counted by the allocator, and against what was measured on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM

from lightrft.batch.micro_batch import padded
from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.diagnostics.dry_passes import DryModel
from lightrft.diagnostics.live_bytes import LiveBytes, peak_of
from lightrft.diagnostics.memory_plan import GIB, GPUS, Models, Plan, cheapest, make_plan
from lightrft.errors import ConfigError
from lightrft.models.freeze import freeze
from lightrft.models.score import score_tokens
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.batches import batch_of
from lightrft.testing.fake_strategy import fake_registry

SMALL: dict[str, Any] = dict(
    hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=384, vocab_size=1024,
    tie_word_embeddings=True,
)  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "268m": dict(
        hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=8, head_dim=64, intermediate_size=3072,
        vocab_size=32768, tie_word_embeddings=False,
    ),
    "1.5b": dict(
        hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, head_dim=128, intermediate_size=8960,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "3b": dict(
        hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, head_dim=128, intermediate_size=11008,
        vocab_size=151936, tie_word_embeddings=True,
    ),
}  # fmt: skip


def on_meta(shape: dict[str, Any]) -> Callable[[], Any]:
    def make() -> Any:
        make_model: Any = Qwen3ForCausalLM
        with torch.device("meta"):
            return make_model(Qwen3Config(**shape))

    return make


@cache
def models(name: str) -> Models:
    shape = SHAPES[name]
    kv = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"]
    return Models(actor=DryModel.of(on_meta(shape)), kv_elements=kv)


def peak_of_allocator(work: Callable[[], object]) -> int:
    """Bytes that torch's CPU allocator gave out at most in `work`, beside what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    result: Any = found.profiler
    events = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


CELLS: list[dict[str, Any]] = [
    {},
    {"micro_train_batch_size": 1},
    {"micro_train_batch_size": 8},  # one micro-batch: gradients come as activations go
    {"gradient_checkpointing": True},
    {"fused_linear_logprob": True, "chunk_size": 64},
    {"gradient_checkpointing": True, "fused_linear_logprob": True, "chunk_size": 64},
]


@pytest.mark.parametrize("settings", CELLS, ids=lambda s: " ".join(s) or "plain")
def test_an_update_on_the_cpu_peaks_where_the_plan_says(settings: dict[str, Any]) -> None:
    config = make_config(
        {"strategy": "single", "engine_type": "hf", "train_batch_size": 8, "micro_train_batch_size": 2, "prompt_max_len": 64,
         "generate_max_len": 64, "compile": "no", **settings}
    )  # fmt: skip
    plan = make_plan(config, models("small"), world=1, device=GIB, cuda=False)
    measured = measured_update(config)
    engine = plan.phases["update"]["engine weights"]  # there is none here; whole runs: tests/test_plan_peaks.py
    assert plan.total("update") - engine == pytest.approx(measured, rel=0.1)


def measured_update(config: Config) -> int:
    """Weights, optimizer state, and the allocator's peak over the micro-batches of one update."""
    strategy = get_strategy(config, registry=fake_registry())
    make_model: Any = Qwen3ForCausalLM
    model, optimizer = strategy.prepare_trainable(make_model(Qwen3Config(**SMALL)), optimizer=AdamWSettings(learning_rate=1e-4))
    length = config.prompt_max_len
    batch = batch_of(Sampled, [([1] * length, [2] * config.generate_max_len) for _ in range(config.train_batch_size)])
    chunk = config.chunk_size if config.fused_linear_logprob else None

    def update() -> None:
        def loss_share(index: torch.Tensor) -> torch.Tensor:
            micro = padded(batch, index, device=torch.device("cpu"))
            return score_tokens(model, micro, temperatures=(1.0,), fused_chunk=chunk).logprobs[0].sum()

        parts = torch.arange(config.train_batch_size).split(config.micro_train_batch_size)
        strategy.accumulate(list(parts), loss_share, model, optimizer)

    update()
    strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
    held = [*model.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
    return sum(t.numel() * t.element_size() for t in held) + peak_of_allocator(update)


def test_live_bytes_counts_what_lives() -> None:
    def work() -> None:
        first = torch.empty(1000, dtype=torch.uint8, device="meta")
        view = first[10:]
        del first
        second = torch.empty(500, dtype=torch.uint8, device="meta")
        del view
        _ = torch.empty(700, dtype=torch.uint8, device="meta"), second

    assert peak_of(work) == 1500
    old = torch.zeros(100)
    with LiveBytes() as live:
        old.add_(1)
        assert live.now == 0 and live.peak == 0


H100, H200 = "h100-80g", "h200-141g"
OF_268M = {
    "engine_mem_util": 0.3, "rollout_batch_size": 64, "train_batch_size": 512, "micro_train_batch_size": 32, "prompt_max_len": 128,
    "generate_max_len": 256,
}  # fmt: skip
OF_1_5B = {
    "engine_mem_util": 0.5, "rollout_batch_size": 32, "train_batch_size": 256, "micro_train_batch_size": 4, "prompt_max_len": 512,
    "generate_max_len": 512,
}  # fmt: skip
PACKED = {"packing_samples": True, "max_tokens_per_micro_batch": 16384, "fused_linear_logprob": True}
PACKED_8K = PACKED | {"max_tokens_per_micro_batch": 8192}
OF_3B = OF_1_5B | PACKED_8K | {
    "rollout_batch_size": 16, "train_batch_size": 128, "prompt_max_len": 128, "generate_max_len": 256, "fsdp_cpu_offload": True,
}  # fmt: skip
MEASURED: list[tuple[str, str, int, dict[str, Any], str, float, float]] = [
    ("268m", H100, 1, OF_268M | {"compile": "no"}, "update", 23.1, 0.1),
    ("268m", H100, 1, OF_268M, "update", 20.4, 0.25),  # the largest error
    ("268m", H100, 1, OF_268M | {"fused_linear_logprob": True}, "update", 15.7, 0.1),
    ("1.5b", H100, 1, OF_1_5B | {"compile": "no"}, "update", 51.2, 0.1),
    ("1.5b", H100, 1, OF_1_5B | {"compile": "no"}, "rollout", 64.9, 0.1),
    ("1.5b", H200, 1, OF_1_5B | PACKED, "update", 74.5, 0.1),
    ("1.5b", H200, 1, OF_1_5B | PACKED, "rollout", 94.3, 0.1),
    ("1.5b", H200, 2, OF_1_5B | PACKED, "update", 65.7, 0.1),
    ("1.5b", H200, 2, OF_1_5B | PACKED, "rollout", 88.7, 0.1),
    # measured after the plan was made
    ("1.5b", H200, 1, OF_1_5B | PACKED_8K, "update", 54.2, 0.1),
    ("1.5b", H200, 1, OF_1_5B | PACKED_8K, "rollout", 94.1, 0.1),
    ("1.5b", H200, 2, OF_1_5B | PACKED_8K, "update", 41.5, 0.1),
    ("1.5b", H200, 2, OF_1_5B | PACKED_8K, "rollout", 82.2, 0.1),
    ("3b", H200, 1, OF_3B, "update", 100.5, 0.1),
    ("3b", H200, 1, OF_3B, "rollout", 85.3, 0.1),
]
"""Peaks of docs/performance.md: model, GPU, ranks, settings, phase, GiB mapped, and how far the plan may be."""


@pytest.mark.parametrize(("shape", "gpu", "world", "settings", "phase", "gib", "within"), MEASURED)
def test_peaks_that_were_measured_on_gpus(
    shape: str, gpu: str, world: int, settings: dict[str, Any], phase: str, gib: float, within: float
) -> None:
    assert gpu_plan(shape, gpu, world, settings).total(phase) / GIB == pytest.approx(gib, rel=within)


def gpu_plan(shape: str, gpu: str, world: int, settings: dict[str, Any]) -> Plan:
    config = make_config({"fsdp": True, "bf16": True, "engine_type": "vllm", **settings})
    return make_plan(config, models(shape), world=world, device=int(GPUS[gpu] * GIB))


def test_what_does_not_fit_is_made_to_fit_at_the_least_cost() -> None:
    shape = models("small")
    config = make_config({"fsdp": True, "bf16": True, "engine_type": "hf", **OF_1_5B, "micro_train_batch_size": 32})
    device = make_plan(config, shape, world=1, device=GIB).total("update") - 1
    assert not make_plan(config, shape, world=1, device=device).fits
    remedy = cheapest(config, shape, world=1, device=device)
    assert remedy is not None and remedy.plan.fits and remedy.world == 1 and remedy.settings == {"fused_linear_logprob": True}
    again = make_plan(config.model_copy(update=dict(remedy.settings)), shape, world=1, device=device)
    assert again == remedy.plan
    assert cheapest(config, shape, world=1, device=GIB // 4) is None


def test_each_backend_cuts_what_it_cuts() -> None:
    found = {}
    for name, settings in {"fsdp": {"fsdp": True}, **{f"zero {n}": {"zero_stage": n} for n in range(4)}}.items():
        config = make_config({"bf16": True, "engine_type": "hf", "kl_coef": 0.1, **OF_268M, **settings})
        plan = make_plan(config, models("small"), world=4, device=GIB, cuda=False)
        found[name] = {part: plan.phases["update"].get(part, 0) for part in ("weights", "optimizer", "gradients", "reference")}
    n = models("small").actor.total
    assert found == {
        "fsdp": {"weights": n, "optimizer": 2 * n, "gradients": 4 * n, "reference": n // 2},
        "zero 0": {"weights": 2 * n, "optimizer": 12 * n, "gradients": 4 * n, "reference": n // 2},
        "zero 1": {"weights": 2 * n, "optimizer": 3 * n, "gradients": 4 * n, "reference": n // 2},
        "zero 2": {"weights": 2 * n, "optimizer": 3 * n, "gradients": n, "reference": n // 2},
        "zero 3": {"weights": n // 2, "optimizer": 3 * n, "gradients": n, "reference": n // 2},
    }


def test_frozen_models_that_rest_are_counted_in_their_passes_alone() -> None:
    shape = replace(models("small"), rewards={"rm": 1_000_000, "other": 3_000_000})
    settings = {"fsdp": True, "bf16": True, "engine_type": "hf", "kl_coef": 0.1, **OF_268M}
    held, resting = (
        make_plan(make_config(settings | {"offload_frozen": rests}), shape, world=4, device=GIB, cuda=False) for rests in (False, True)
    )
    reference = {"reference": shape.actor.total // 2}  # bfloat16 over four ranks
    rewards = {"reward rm": 500_000, "reward other": 1_500_000}
    at_work = {"reference pass": reference, "reward pass": {"reward other": 1_500_000}}
    assert held.phases.keys() == resting.phases.keys()
    for phase, parts in held.phases.items():
        frozen = {name: size for name, size in parts.items() if name.startswith("re")}
        assert frozen == reference | rewards
        assert resting.phases[phase] == {k: v for k, v in parts.items() if k not in frozen} | at_work.get(phase, {})


def test_the_engine_is_awake_beside_the_reward_pass_where_groups_are_drawn_again() -> None:
    shape = replace(models("small"), rewards={"rm": 1_000_000})
    for again in (False, True):
        config = make_config({"fsdp": True, "bf16": True, "engine_type": "vllm", "dynamic_sampling": again, **OF_268M})
        phases = make_plan(config, shape, world=1, device=GIB * 40).phases
        engine = {"engine weights", "KV cache", "engine, beside its fraction"}
        assert engine <= {*phases["rollout"]} and engine & {*phases["reward pass"]} == (engine if again else set())
        assert not engine & {*phases["update"]}


def test_resting_is_a_remedy_where_something_is_frozen() -> None:
    config = make_config({"fsdp": True, "bf16": True, "engine_type": "hf", "fused_linear_logprob": True, "kl_coef": 0.1, **OF_268M})
    for changes, expected in (({}, {"offload_frozen": True}), ({"kl_coef": 0.0}, {"micro_train_batch_size": 16})):
        tight = config.model_copy(update=changes)
        device = make_plan(tight, models("small"), world=1, device=GIB).total("update") - 1
        remedy = cheapest(tight, models("small"), world=1, device=device)
        assert remedy is not None and remedy.settings == expected


def test_frozen_parameters_have_weights_alone_and_a_critic_is_trained_whole() -> None:
    def make() -> Any:
        model = on_meta(SMALL)()
        freeze(model, "embed|layers.0")
        return model

    whole, some = models("small"), replace(models("small"), actor=DryModel.of(make), has_critic=True)
    settings = {"strategy": "single", "engine_type": "hf", "train_batch_size": 8, "micro_train_batch_size": 2, "compile": "no"}
    plan = make_plan(make_config(settings), some, world=1, device=GIB, cuda=False)
    total, trained = whole.actor.total, some.actor.trained
    assert 0 < trained < total == some.actor.total
    found = plan.phases["update"]
    assert (found["weights"], found["optimizer"], found["gradients"]) == (4 * total, 8 * trained, 4 * trained)
    assert found["critic"] == 12 * total


def test_a_strategy_that_is_not_known_is_refused() -> None:
    config = make_config({"strategy": "elsewhere"})
    with pytest.raises(ConfigError, match="strategy 'elsewhere': a plan knows what single, fsdp, deepspeed hold"):
        make_plan(config, models("small"), world=1, device=GIB)
