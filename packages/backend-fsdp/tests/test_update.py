"""An update over several ranks is the update of one process. In numbers, against `single`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from lightrft.config.load import make_config
from lightrft.errors import StrategyStateError
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference, loss_sum, ragged_rows, train

Tensors = dict[str, torch.Tensor]


def full_gradients(model: torch.nn.Module) -> Tensors:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in found.items()}


def first_gradients(strategy: StrategyBase, **how: Any) -> Tensors:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 1, **how)
    return full_gradients(model)


def trained(strategy: StrategyBase, max_norm: float) -> tuple[Tensors, list[float]]:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    results = train(strategy, model, optimizer, max_norm=max_norm)
    return full_parameters(strategy, model), [r.grad_norm for r in results]


def not_a_number(strategy: StrategyBase) -> dict[str, Any]:
    """A NaN from the last rank alone, between two good steps; beside it the same without the NaN."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(strategy, model, optimizer, last=1, scheduler=scheduler)
    before, rate = full_parameters(strategy, model), scheduler.get_last_lr()
    sick = float("nan") if strategy.world.rank == strategy.world.world_size - 1 else 1.0
    strategy.backward(loss_sum(model, ragged_rows(9)[:2]) * sick, model, optimizer)
    result = strategy.optimizer_step(optimizer, model, scheduler, "actor")
    after, rate_after = full_parameters(strategy, model), scheduler.get_last_lr()
    train(strategy, model, optimizer, first=1, last=2, scheduler=scheduler)

    healthy, healthy_optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    healthy_scheduler = torch.optim.lr_scheduler.LambdaLR(healthy_optimizer, lambda step: 1 / (1 + step))
    train(strategy, healthy, healthy_optimizer, last=2, scheduler=healthy_scheduler)
    return {
        "skipped": result.skipped,
        "counted": dict(strategy.skipped_steps),
        "unchanged": largest_difference(after, before) == 0 and rate == rate_after,
        "as_if_never_seen": largest_difference(full_parameters(strategy, model), full_parameters(strategy, healthy)) == 0,
    }


def fresh_after_a_forward(strategy: StrategyBase) -> float:
    """A forward without gradients between backward and step must leave no old weights behind for the forward after the step."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 0)
    ids = torch.arange(20).reshape(1, 20)
    with torch.no_grad():
        old = model(input_ids=ids).logits
    strategy.optimizer_step(optimizer, model, None)
    plain = tiny_causal_lm(seed=1)
    plain.load_state_dict(full_parameters(strategy, model), strict=True)
    with torch.no_grad():
        new, expected = model(input_ids=ids).logits, plain(input_ids=ids).logits
    assert not torch.equal(old, new)
    return float((new - expected).abs().max())


def step_before_the_final_micro_batch(strategy: StrategyBase) -> str:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    strategy.backward(loss_sum(model, ragged_rows(0)[:1]), model, optimizer, final=False)
    with pytest.raises(StrategyStateError) as caught:
        strategy.optimizer_step(optimizer, model, None)
    return str(caught.value)


def bf16() -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True, "bf16": True}))
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    frozen = strategy.prepare_model(tiny_causal_lm())
    ids = torch.arange(20).reshape(1, 20)
    with torch.no_grad():
        logits, frozen_logits = model(input_ids=ids).logits, frozen(input_ids=ids).logits
    accumulate(strategy, model, optimizer, 1)
    gradients = full_gradients(model)
    tiny_step = AdamWSettings(learning_rate=1e-6)
    other, other_optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=tiny_step)
    before = full_parameters(strategy, other)
    train(strategy, other, other_optimizer, last=1)
    moved = {name: float((full - before[name]).abs().max()) for name, full in full_parameters(strategy, other).items()}
    return {
        "logits": logits.dtype,
        "frozen_equal": torch.equal(logits, frozen_logits),
        "frozen_dtypes": {p.dtype for p in frozen.parameters()},
        "master_dtypes": {p.dtype for p in model.parameters()},
        "gradients": gradients,
        "smallest_move": min(moved.values()),
    }


def measure() -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True}))
    world_size = strategy.world.world_size
    return {
        "gradients": first_gradients(strategy),
        "gradients, each micro-batch synced": first_gradients(strategy, always_final=True),
        "gradients, last rank without rows": first_gradients(strategy, num_ranks_with_rows=max(1, world_size - 1)),
        "free": trained(strategy, 0.0),
        "clipped": trained(strategy, 0.5),
        "nan": not_a_number(strategy),
        "stale": fresh_after_a_forward(strategy),
        "early": step_before_the_final_micro_batch(strategy),
        "bf16": bf16(),
    }


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_spmd(measure, request.param)


def one_process() -> dict[str, Any]:
    strategy = get_strategy(make_config({"strategy": "single"}))
    return {"gradients": first_gradients(strategy), "free": trained(strategy, 0.0), "clipped": trained(strategy, 0.5)}


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    return run_spmd(one_process, 1)[0]


@pytest.mark.parametrize("how", ["gradients", "gradients, each micro-batch synced", "gradients, last rank without rows"])
def test_gradients_of_the_first_step(ranks: list[dict[str, Any]], oracle: dict[str, Any], how: str) -> None:
    for rank in ranks:
        assert largest_difference(rank[how], oracle["gradients"], relative=True) < 1e-6


@pytest.mark.parametrize("kind", ["free", "clipped"])
def test_parameters_and_norms_of_five_steps(ranks: list[dict[str, Any]], oracle: dict[str, Any], kind: str) -> None:
    expected, norms = oracle[kind]
    assert all(norm > 0.5 for norm in norms)  # so the clip at 0.5 did something
    for rank in ranks:
        found, found_norms = rank[kind]
        assert largest_difference(found, expected) < 3e-5
        assert found_norms == pytest.approx(norms, rel=1e-5)


def test_max_norm_0_is_off_and_not_zero_gradients(ranks: list[dict[str, Any]], oracle: dict[str, Any]) -> None:
    assert largest_difference(ranks[0]["free"][0], oracle["clipped"][0]) > 1e-4
    assert largest_difference(ranks[0]["clipped"][0], oracle["free"][0]) > 1e-4


def test_nan_on_one_rank_skips_the_step_on_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["nan"] == {"skipped": True, "counted": {"actor": 1}, "unchanged": True, "as_if_never_seen": True}


def test_a_forward_after_a_step_sees_the_new_weights(ranks: list[dict[str, Any]]) -> None:
    assert max(rank["stale"] for rank in ranks) < 1e-6


def test_a_step_before_the_final_micro_batch_is_refused(ranks: list[dict[str, Any]]) -> None:
    assert all("final=True" in rank["early"] for rank in ranks)


def test_bf16_computes_in_bfloat16_and_keeps_float32_masters(ranks: list[dict[str, Any]], oracle: dict[str, Any]) -> None:
    for rank in ranks:
        found = rank["bf16"]
        assert found["logits"] is torch.bfloat16 and found["master_dtypes"] == {torch.float32}
        assert found["frozen_dtypes"] == {torch.bfloat16} and found["frozen_equal"]
        assert 0 < found["smallest_move"] < 2e-6  # a step of 1e-6 would be rounded away in bfloat16
        for name, expected in oracle["gradients"].items():
            assert found["gradients"][name].dtype is torch.float32
            assert torch.cosine_similarity(found["gradients"][name].flatten(), expected.flatten(), dim=0) > 0.99


class Line(torch.nn.Module):
    """y = w x, with w = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False)])
        torch.nn.init.constant_(self.layers[0].weight, 2.0)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


def by_hand() -> tuple[float, float, float]:
    strategy = get_strategy(make_config({"fsdp": True}))
    model, optimizer = strategy.prepare_trainable(Line(), optimizer=AdamWSettings(learning_rate=0.125, eps=0.0))
    x, y = (([[1.0]], [[1.0]]), ([[2.0], [3.0]], [[1.0], [4.0]]))[strategy.world.rank]
    loss_share = ((model(torch.tensor(x)) - torch.tensor(y)) ** 2).sum() / 2 / 3
    strategy.backward(loss_share, model, optimizer)
    gradient = full_gradients(model)["layers.0.weight"].item()
    result = strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
    return gradient, result.grad_norm, full_parameters(strategy, model)["layers.0.weight"].item()


def test_two_ranks_with_one_and_two_tokens_by_hand() -> None:
    """Residuals w x - y = 1, 3, 2, times x = 1, 2, 3: (1 + 6 + 6) / 3 tokens, and not the mean of the ranks' means, (1 + 6) / 2.

    AdamW's first step without eps moves by the learning rate: 2 - 0.125.
    """
    for gradient, norm, weight in run_spmd(by_hand, 2):
        assert gradient == pytest.approx(13 / 3, rel=1e-6)
        assert norm == pytest.approx(13 / 3, rel=1e-6)
        assert weight == pytest.approx(1.875, rel=1e-6)
        assert not math.isclose(gradient, 3.5)


def alone() -> tuple[int, Tensors]:
    import os

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    strategy = get_strategy(make_config({"fsdp": True}))
    return strategy.world.world_size, trained(strategy, 0.5)[0]


def test_one_process_without_torchrun(oracle: dict[str, Any]) -> None:
    ((world_size, parameters),) = run_spmd(alone, 1)
    assert world_size == 1
    assert largest_difference(parameters, oracle["clipped"][0]) < 3e-5
