"""The moving average of the actor is the same on two ranks of every backend as in one process, and comes back on any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.models.load import open_causal_lm
from lightrft.models.lora import add_lora
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder

pytestmark = pytest.mark.slow  # two ranks of five backends, one after the other

BETA, STEPS = 0.8, 3
IDS = [[3, 4, 5, 6], [7, 8, 9, 4]]
BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, bf16, use_mp_opt": {"fsdp": True, "bf16": True, "use_mp_opt": True},
    "zero 2": {},
    "zero 3": {"zero_stage": 3},
    "zero 3, bf16": {"zero_stage": 3, "bf16": True},
    "zero 3, LoRA": {"zero_stage": 3, "lora_rank": 2},
}

Weights = dict[str, torch.Tensor]


def exported(strategy: StrategyBase, model: torch.nn.Module) -> Weights:
    """Every weight, whole, in float64."""
    buckets = strategy.export_weights(model, dtype=torch.float32)
    return {weight.names[0]: weight.tensor.detach().double().clone() for bucket in buckets for weight in bucket}


def run(backend: dict[str, Any], folder: Path) -> tuple[Weights, Weights]:
    """Three optimizer steps: the average, and the same in float64 from what left the actor after each step. Saves and loads it."""
    lora_rank = backend.get("lora_rank", 0)
    strategy = get_strategy(make_config({**backend, "engine_type": "hf", "max_norm": 0.0}))
    opened = open_causal_lm(folder / "model", dtype=torch.float32)
    if lora_rank:
        actor: torch.nn.Module = add_lora(opened.model, rank=lora_rank, alpha=16.0, target_modules=["all-linear"], seed=1)
    else:
        actor = opened.model
    actor, optimizer = strategy.prepare_trainable(actor, optimizer=AdamWSettings(learning_rate=1e-4), weights=opened.weights)
    opened = open_causal_lm(folder / "model", dtype=torch.float32)
    ema = strategy.prepare_ema_model(opened.model, weights=opened.weights)
    by_hand = exported(strategy, ema)
    world = strategy.world
    for _ in range(STEPS):
        strategy.maybe_load_optimizer(optimizer)
        ids = torch.tensor(IDS[world.rank :: world.world_size])
        loss_share = actor(input_ids=ids).logits.float().log_softmax(-1)[..., 5].sum() / len(IDS)
        strategy.backward(loss_share, actor, optimizer)
        assert not strategy.optimizer_step(optimizer, actor, None, name="actor").skipped
        strategy.move_ema_model(ema, actor, beta=BETA)
        strategy.maybe_offload_optimizer(optimizer)
        by_hand = {name: BETA * by_hand[name] + (1 - BETA) * value for name, value in exported(strategy, actor).items()}
    found = exported(strategy, ema)
    name = f"{world.world_size}-{'-'.join(map(str, backend.values()))}"
    strategy.save_ema_model(folder / name, ema)
    again = strategy.prepare_ema_model(tiny_causal_lm(seed=9))
    strategy.load_ema_model(folder / name, again)
    assert all(torch.equal(found[key], value) for key, value in exported(strategy, again).items()), "bit by bit"
    if world.world_size == 2:
        strategy.save_model(again, folder / f"{name}-hf")
    strategy.shutdown()
    return found, by_hand


def on_this_rank(folder: str) -> dict[str, tuple[Weights, Weights]]:
    return {name: run(backend, Path(folder)) for name, backend in BACKENDS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ema")
    tiny_model_folder(path / "model", seed=4)
    return path


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[str, tuple[Weights, Weights]]]:
    return run_spmd(on_this_rank, 2, str(folder), timeout_s=300.0)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_average_of_two_ranks_is_that_of_the_exported_weights(two_ranks: Any, name: str) -> None:
    for rank in two_ranks:
        found, by_hand = rank[name]
        assert found.keys() == by_hand.keys()
        assert max(float((found[key] - by_hand[key]).abs().max()) for key in found) <= 5e-7


@pytest.mark.parametrize("name", [name for name in BACKENDS if "bf16" not in name])
def test_two_ranks_are_one_process(folder: Path, two_ranks: Any, name: str) -> None:
    lora = {key: value for key, value in BACKENDS[name].items() if key == "lora_rank"}
    expected, _ = run({"strategy": "single", **lora}, folder)
    found, _ = two_ranks[0][name]
    assert max(float((found[key] - value).abs().max()) for key, value in expected.items()) <= 1e-6
    start = exported_start(folder)
    assert max(float((start[key] - value).abs().max()) for key, value in expected.items()) > 5e-5, "it has moved"


def exported_start(folder: Path) -> Weights:
    model = tiny_causal_lm(seed=4)
    return {name: p.detach().double() for name, p in model.named_parameters()}


def test_what_two_ranks_saved_one_process_reads(folder: Path, two_ranks: Any) -> None:
    strategy = get_strategy(make_config({"fsdp": True, "engine_type": "hf"}))
    ema = strategy.prepare_ema_model(tiny_causal_lm(seed=9))
    strategy.load_ema_model(folder / "2-True", ema)
    found, _ = two_ranks[0]["fsdp"]
    assert all(torch.equal(found[key], value) for key, value in exported(strategy, ema).items())
    loaded = open_causal_lm(folder / "2-True-hf", dtype=torch.float32)
    assert loaded.weights is not None
    loaded.weights.fill(loaded.model)
    assert all(torch.equal(found[key], p.detach().double()) for key, p in loaded.model.named_parameters())
    strategy.shutdown()
