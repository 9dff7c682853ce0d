"""A trainer can be tested on the fake: it records, really trains, and refuses what a real strategy refuses."""

from __future__ import annotations

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import PluginNotInstalledError, StrategyStateError
from lightrft.plugins import RewardSpec
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_strategy import FakeStrategy, fake_registry


def make(**settings: object) -> FakeStrategy:
    strategy = get_strategy(make_config({"strategy": "fake", **settings}), registry=fake_registry())
    assert isinstance(strategy, FakeStrategy)
    return strategy


def test_calls_are_recorded_in_order_and_do_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    strategy = make(fsdp_cpu_offload=True)
    model, optimizer = strategy.prepare_trainable(torch.nn.Linear(1, 1), optimizer=AdamWSettings(learning_rate=0.5))
    before = model.weight.item()
    strategy.backward(model(torch.ones(1)).sum(), model, optimizer)
    strategy.optimizer_step(optimizer, model, None, name="critic")
    assert model.weight.item() == pytest.approx(before - 0.5)
    moment = optimizer.state[model.weight]["exp_avg"]
    strategy.maybe_offload_optimizer(optimizer)
    assert optimizer.state[model.weight]["exp_avg"] is not moment
    strategy.backward(model(torch.ones(1)).sum(), model, optimizer)
    with pytest.raises(StrategyStateError, match="offloaded"):
        strategy.optimizer_step(optimizer, model, None)
    assert strategy.calls == [
        "prepare_trainable",
        "backward",
        "optimizer_step",
        "maybe_offload_optimizer",
        "backward",
        "optimizer_step",
    ]
    assert strategy.world.group is None and not torch.distributed.is_initialized()


def test_the_registry_holds_core_the_fakes_and_what_is_added() -> None:
    registry = fake_registry(RewardSpec(name="mine", target="math:sqrt"))
    assert registry.names("strategy") == ["fake", "sharded", "single"]
    assert registry.names("engine") == ["fake", "hf"]
    assert "mine" in registry.names("reward") and registry.load("reward", "mine")(9) == 3
    assert registry.load("engine", "fake").__name__ == "FakeEngine"
    with pytest.raises(PluginNotInstalledError, match=r"lightrft\[fsdp\]"):
        registry.entry("strategy", "fsdp")
