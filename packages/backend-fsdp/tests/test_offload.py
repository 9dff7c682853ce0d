"""Optimizer state really leaves, comes back with the same bits, and stays whole when something fails."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

from lightrft.config.load import make_config
from lightrft.errors import StrategyStateError
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

Optimizer = torch.optim.Optimizer


def moments(optimizer: Optimizer) -> list[torch.Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if v.dim() > 0]


def addresses(optimizer: Optimizer) -> list[int]:
    return [(t.to_local() if isinstance(t, DTensor) else t).data_ptr() for t in moments(optimizer) if t.numel()]


def with_and_without(strategy: StrategyBase, *, offload: bool) -> dict[str, torch.Tensor]:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    for step in range(4):
        strategy.maybe_load_optimizer(optimizer)
        train(strategy, model, optimizer, first=step, last=step + 1)
        if offload:
            strategy.maybe_offload_optimizer(optimizer)
            strategy.maybe_offload_optimizer(optimizer)
    return full_parameters(strategy, model)


def failing(strategy: StrategyBase, model: torch.nn.Module, optimizer: Optimizer) -> bool:
    """Host memory runs out at the third tensor: the state is as before, and training goes on."""
    before = moments(optimizer)
    empty, calls = torch.empty, iter(range(100))

    def scarce(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("out of host memory")
        return empty(*args, **kwargs)

    with mock.patch("torch.empty", scarce), pytest.raises(RuntimeError, match="out of host memory"):
        strategy.maybe_offload_optimizer(optimizer)
    unchanged = len(before) == len(moments(optimizer)) and all(a is b for a, b in zip(before, moments(optimizer), strict=True))
    return unchanged and not train(strategy, model, optimizer, first=1, last=2)[0].skipped


def measure() -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True, "fsdp_cpu_offload": True}))
    never, always = with_and_without(strategy, offload=False), with_and_without(strategy, offload=True)
    out: dict[str, Any] = {"difference": largest_difference(always, never)}
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    strategy.maybe_offload_optimizer(optimizer)  # nothing there yet
    strategy.maybe_load_optimizer(optimizer)
    train(strategy, model, optimizer, last=1)
    out["goes on after a failure"] = failing(strategy, model, optimizer)
    on_device = addresses(optimizer)
    strategy.maybe_offload_optimizer(optimizer)
    out["moved"] = not set(on_device) & set(addresses(optimizer))
    out["plain host tensors"] = all(not isinstance(t, DTensor) and t.device.type == "cpu" for t in moments(optimizer))
    out["num_moved"], out["num_trained"] = len(moments(optimizer)), len(list(model.parameters()))
    with pytest.raises(StrategyStateError, match="maybe_load_optimizer first"):
        train(strategy, model, optimizer, first=2, last=3)
    strategy.maybe_load_optimizer(optimizer)
    strategy.maybe_load_optimizer(optimizer)
    out["sharded again"] = all(isinstance(t, DTensor) for t in moments(optimizer))
    train(strategy, model, optimizer, first=3, last=4)
    return out


@pytest.fixture(scope="module", params=[1, 2])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_spmd(measure, request.param)


def test_same_bits_with_and_without(ranks: list[dict[str, Any]]) -> None:
    assert [rank["difference"] for rank in ranks] == [0.0] * len(ranks)


def test_both_moments_of_every_parameter_move(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["moved"] and rank["plain host tensors"] and rank["sharded again"]
        assert rank["num_moved"] == 2 * rank["num_trained"] > 40


def test_a_failure_half_way_leaves_everything_in_place(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["goes on after a failure"] for rank in ranks)
