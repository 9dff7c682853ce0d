"""What leaves a strategy, to engines, files, averages and checkpoints, is the state dict that transformers would save, with its buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import WITH_BUFFERS, make_family
from transformers import AutoModelForCausalLM

from lightrft.config.load import make_config
from lightrft.models.load import open_causal_lm
from lightrft.models.lora import add_lora
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.weights.buckets import saved_buffers

IDS = torch.arange(3, 30)[None]
ENGINE = {"engine_type": "hf", "prompt_max_len": 32, "generate_max_len": 8, "weight_bucket_mb": 1, "verify_sync_every": 1}
BACKENDS: dict[str, dict[str, Any]] = {
    "single": {"strategy": "single"},
    "fsdp": {"fsdp": True},
    "fsdp bf16": {"fsdp": True, "bf16": True},
    "zero 0": {"zero_stage": 0},
    "zero 1": {"zero_stage": 1},
    "zero 2": {"zero_stage": 2},
    "zero 3": {"zero_stage": 3},
    "zero 3 bf16": {"zero_stage": 3, "bf16": True},
}


def folders(path: Path) -> Path:
    for name in WITH_BUFFERS:
        make_family(name, seed=1).save_pretrained(path / name)
    return path


def train_a_step(strategy: StrategyBase, actor: Any, optimizer: Any) -> None:
    strategy.accumulate([IDS], lambda ids: actor(input_ids=ids).logits.float().logsumexp(-1).mean() / 2, actor, optimizer)
    assert not strategy.optimizer_step(optimizer, actor, None).skipped


def exported(strategy: StrategyBase, actor: Any) -> dict[str, torch.Tensor]:
    return {name: w.tensor.clone() for bucket in strategy.export_weights(actor) for w in bucket for name in w.names}


def check_export(found: dict[str, torch.Tensor], name: str, *, moved: bool) -> None:
    """All names of the state dict; buffers bit by bit; parameters have moved, or not."""
    state = make_family(name).state_dict()
    assert found.keys() == state.keys()
    for key, buffer in saved_buffers(make_family(name)).items():
        assert torch.equal(found[key], buffer) and found[key].dtype == buffer.dtype, key
    assert any(not torch.equal(found[key].float(), state[key]) for key in state) is moved


def check_folder(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, expected[key].float()) for key, value in model.state_dict().items())


def on_ranks(path: str, settings: dict[str, Any], level: int) -> None:
    for name in WITH_BUFFERS:
        source = Path(path) / name
        config = make_config(settings | ENGINE | {"model_name_or_path": str(source), "engine_sleep_level": level})
        strategy = get_strategy(config)
        out = Path(path) / f"out-{'-'.join(map(str, settings.values()))}-{strategy.world.world_size}-{level}" / name
        strategy.setup_inference_engine(config)
        strategy.maybe_sleep_inference_engine()
        actor, optimizer = strategy.prepare_trainable(make_family(name), optimizer=AdamWSettings(learning_rate=1e-2))
        average = strategy.prepare_ema_model(make_family(name, seed=1))
        check_export(exported(strategy, actor), name, moved=False)
        train_a_step(strategy, actor, optimizer)
        weights = exported(strategy, actor)
        check_export(weights, name, moved=True)
        strategy.move_ema_model(average, actor, beta=0.5)
        check_export(exported(strategy, average), name, moved=True)
        check_sync(strategy, actor, name)
        strategy.save_model(actor, out / "model")
        strategy.save_ckpt(out / "ckpt", model=actor, optimizer=optimizer)
        strategy.save_ema_model(out / "ema", average)
        for buffer in [*saved_buffers(strategy.unwrap(actor)).values(), *saved_buffers(average).values()]:
            buffer.add_(1)
        strategy.load_ckpt(out / "ckpt", model=actor, optimizer=optimizer)
        strategy.load_ema_model(out / "ema", average)
        assert all(torch.equal(value, weights[key]) for key, value in exported(strategy, actor).items())
        check_export(exported(strategy, average), name, moved=True)
        if strategy.is_rank_0:
            check_folder(out / "model", weights)
        strategy.shutdown()


def check_sync(strategy: StrategyBase, actor: Any, name: str) -> None:
    """The engine, which began with other buffers and slept, has the actor's, and so its log-probs."""
    strategy.update_engine_weights(actor)
    assert strategy.differing_engine_weights(actor) == []
    engine: Any = strategy.inference_engine
    held = saved_buffers(engine.model)
    for key, buffer in saved_buffers(make_family(name)).items():
        assert torch.equal(held[key], buffer.to(held[key].dtype)), key
    weights = exported(strategy, actor)
    twin = make_family(name, seed=1)
    twin.load_state_dict(weights)
    if engine.setup.dtype is torch.float32:
        with torch.no_grad():
            assert float((engine.model(input_ids=IDS).logits - twin(IDS).logits).abs().max()) <= 1e-5
    strategy.wakeup_inference_engine()
    strategy.maybe_sleep_inference_engine()


@pytest.mark.long
@pytest.mark.parametrize(("backend", "ranks", "level"), [(b, 1 + (b != "single"), 1 + i % 2) for i, b in enumerate(BACKENDS)])
def test_buffers_leave_with_the_weights(tmp_path: Path, backend: str, ranks: int, level: int) -> None:
    run_spmd(on_ranks, ranks, str(folders(tmp_path)), BACKENDS[backend], level, timeout_s=300)


@pytest.mark.long
@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "single"])
def test_buffers_leave_with_the_weights_of_one_rank(tmp_path: Path, backend: str) -> None:
    run_spmd(on_ranks, 1, str(folders(tmp_path)), BACKENDS[backend], 2, timeout_s=300)


@pytest.mark.parametrize("level", [1, 2])
def test_one_process(tmp_path: Path, level: int) -> None:
    on_ranks(str(folders(tmp_path)), {"strategy": "single"}, level)


def test_adapters_beside_buffers(tmp_path: Path) -> None:
    """The names of buffers are those of the model without adapters, and its files give a model that was opened empty its buffers."""
    make_family("apertus").save_pretrained(tmp_path / "base")
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(tmp_path / "base", dtype=torch.float32)
    adapted = add_lora(opened.model, rank=2, alpha=4.0, target_modules=["all-linear"], seed=0)
    actor, _ = strategy.prepare_trainable(adapted, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    check_export(exported(strategy, actor), "apertus", moved=False)
    check_folder(strategy.save_model(actor, tmp_path / "saved"), make_family("apertus").state_dict())
    strategy.shutdown()
