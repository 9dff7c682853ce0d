"""A moving average holds the numbers worked out by hand; a model that cannot be one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm


@pytest.fixture
def strategy() -> StrategyBase:
    return get_strategy(make_config({"strategy": "fake", "engine_type": "fake"}), registry=fake_registry())


def linear(*values: float) -> torch.nn.Module:
    model = torch.nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
    return model


def test_two_moves_by_hand(strategy: StrategyBase) -> None:
    model, _ = strategy.prepare_trainable(linear(2.0, -4.0), optimizer=AdamWSettings(learning_rate=1.0))
    ema: Any = strategy.prepare_ema_model(linear(1.0, 0.0))
    strategy.move_ema_model(ema, model, beta=0.75)  # 3/4 of 1 and 1/4 of 2; 3/4 of 0 and 1/4 of -4
    assert ema.weight.tolist() == [[1.25, -1.0]]
    strategy.move_ema_model(ema, model, beta=0.75)
    assert ema.weight.tolist() == [[1.4375, -1.75]]
    strategy.move_ema_model(ema, model, beta=0.0)  # no past
    assert ema.weight.tolist() == [[2.0, -4.0]]
    assert model.weight.tolist() == [[2.0, -4.0]] and not ema.weight.requires_grad


def test_moves_that_bfloat16_would_lose_are_kept(strategy: StrategyBase) -> None:
    model, _ = strategy.prepare_trainable(linear(1.001), optimizer=AdamWSettings(learning_rate=1.0))
    ema: Any = strategy.prepare_ema_model(linear(1.0).to(torch.bfloat16))
    for _ in range(100):
        strategy.move_ema_model(ema, model, beta=0.99)
    assert ema.weight.item() == pytest.approx(1.001 - 0.001 * 0.99**100, abs=1e-6)


def test_a_tied_weight_is_moved_once(strategy: StrategyBase) -> None:
    model, _ = strategy.prepare_trainable(tiny_causal_lm(seed=1, tie=True), optimizer=AdamWSettings(learning_rate=1.0))
    ema: Any = strategy.prepare_ema_model(tiny_causal_lm(seed=2, tie=True))
    start = ema.get_input_embeddings().weight.clone()
    strategy.move_ema_model(ema, model, beta=0.5)
    expected = (start + strategy.unwrap(model).get_input_embeddings().weight) / 2
    torch.testing.assert_close(ema.get_input_embeddings().weight, expected, rtol=0, atol=1e-7)
    assert ema.get_output_embeddings().weight is ema.get_input_embeddings().weight


def test_what_cannot_follow_is_refused(strategy: StrategyBase) -> None:
    model, _ = strategy.prepare_trainable(linear(2.0, 4.0), optimizer=AdamWSettings(learning_rate=1.0))
    ema = strategy.prepare_ema_model(linear(1.0, 0.0))
    with pytest.raises(ValueError, match=r"beta=1.0 of a moving average is not in \[0, 1\)"):
        strategy.move_ema_model(ema, model, beta=1.0)
    with pytest.raises(ValueError, match=r"1 parameters differ, first weight \(there \(1, 3\), in the actor \(1, 2\)\)"):
        strategy.move_ema_model(strategy.prepare_ema_model(linear(1.0, 2.0, 3.0)), model, beta=0.5)
    with pytest.raises(ValueError, match="held in torch.bfloat16, where small moves are lost; use prepare_ema_model"):
        strategy.move_ema_model(strategy.prepare_model(linear(1.0, 0.0).to(torch.bfloat16)), model, beta=0.5)


def test_it_is_saved_and_restored_to_the_bit(strategy: StrategyBase, tmp_path: Path) -> None:
    ema: Any = strategy.prepare_ema_model(tiny_causal_lm(seed=2))
    strategy.save_ema_model(tmp_path / "ema", ema)
    other: Any = strategy.prepare_ema_model(tiny_causal_lm(seed=3))
    strategy.load_ema_model(tmp_path / "ema", other)
    assert all(torch.equal(a, b) for a, b in zip(ema.parameters(), other.parameters(), strict=True))
    (file,) = (tmp_path / "ema").glob("rank-*.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: rank-00000.pt is not what was saved"):
        strategy.load_ema_model(tmp_path / "ema", other)
