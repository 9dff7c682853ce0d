"""An update at every ZeRO stage, over several ranks, is the update of one process. In numbers, against `single`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import StrategyStateError
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference, loss_sum, ragged_rows, train

Tensors = dict[str, torch.Tensor]

STAGES = (0, 1, 2, 3)
OFFLOADED = (2, 3)
TIMEOUT_S = 900.0


def deepspeed(stage: int) -> StrategyBase:
    return get_strategy(make_config({"zero_stage": stage}))


def trained(strategy: StrategyBase, max_norm: float, *, steps: int = 5) -> tuple[Tensors, list[float]]:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    results = train(strategy, model, optimizer, last=steps, max_norm=max_norm)
    return full_parameters(strategy, model), [r.grad_norm for r in results]


def one_rank_without_rows(strategy: StrategyBase) -> Tensors:
    """One step of three micro-batches, all empty on the last rank."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 1, num_ranks_with_rows=max(1, strategy.world.world_size - 1))
    strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
    return full_parameters(strategy, model)


def value_loss(model: torch.nn.Module, step: int, rank: int, world_size: int) -> torch.Tensor:
    """Another loss than the actor's: the first logit of each row's last token, towards 0.3."""
    rows = ragged_rows(step)
    mine = rows[rank::world_size]
    values = [model(input_ids=row.token_ids[None]).logits[0, -1, 0].float() for row in mine]
    return ((torch.stack(values) - 0.3) ** 2).sum() / len(rows)


def actor_and_critic(strategy: StrategyBase) -> tuple[Tensors, Tensors]:
    """Two trained models in one process, both forwards before either backward."""
    actor, actor_optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    critic, critic_optimizer = strategy.prepare_trainable(tiny_causal_lm(seed=5), optimizer=AdamWSettings(learning_rate=5e-4))
    rank, world_size = strategy.world.rank, strategy.world.world_size
    for step in range(3):
        mine = ragged_rows(step)[rank::world_size]
        policy = loss_sum(actor, mine) / sum(row.num_counted for row in ragged_rows(step))
        value = value_loss(critic, step, rank, world_size)
        strategy.backward(policy, actor, actor_optimizer)
        strategy.backward(value, critic, critic_optimizer)
        strategy.optimizer_step(actor_optimizer, actor, None, "actor", max_norm=1.0)
        strategy.optimizer_step(critic_optimizer, critic, None, "critic", max_norm=0.1)
    return full_parameters(strategy, actor), full_parameters(strategy, critic)


def not_a_number(strategy: StrategyBase, sick: float) -> dict[str, Any]:
    """A sick loss from the last rank alone, between two good steps; beside it the same without it."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(strategy, model, optimizer, last=1, scheduler=scheduler)
    before, rate = full_parameters(strategy, model), scheduler.get_last_lr()
    factor = sick if strategy.world.rank == strategy.world.world_size - 1 else 1.0
    for final in (False, True):
        strategy.backward(loss_sum(model, ragged_rows(9)[:2]) * factor, model, optimizer, final=final)
    result = strategy.optimizer_step(optimizer, model, scheduler, "actor")
    after, rate_after = full_parameters(strategy, model), scheduler.get_last_lr()
    train(strategy, model, optimizer, first=1, last=2, scheduler=scheduler)

    healthy, healthy_optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    healthy_scheduler = torch.optim.lr_scheduler.LambdaLR(healthy_optimizer, lambda step: 1 / (1 + step))
    train(strategy, healthy, healthy_optimizer, last=2, scheduler=healthy_scheduler)
    return {
        "skipped": result.skipped,
        "finite": math.isfinite(result.grad_norm),
        "counted": dict(strategy.skipped_steps),
        "unchanged": largest_difference(after, before) == 0 and rate == rate_after,
        "as_if_never_seen": largest_difference(full_parameters(strategy, model), full_parameters(strategy, healthy)) == 0,
    }


SKIPPED = {"skipped": True, "finite": False, "counted": {"actor": 1}, "unchanged": True, "as_if_never_seen": True}


def scheduled(strategy: StrategyBase) -> tuple[Tensors, list[float]]:
    """A schedule of torch over the returned optimizer; the rates are read as the trainer reads them."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    rates = []
    for step in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        train(strategy, model, optimizer, first=step, last=step + 1, scheduler=scheduler)
    return full_parameters(strategy, model), rates


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
    assert type(strategy.unwrap(model)) is type(plain) and not strategy.unwrap(model).training
    return float((new - expected).abs().max())


def refused(what: Callable[[], object]) -> str:
    with pytest.raises(StrategyStateError) as caught:
        what()
    return str(caught.value)


def wrong_order(strategy: StrategyBase) -> tuple[str, str]:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)

    def backward(final: bool) -> None:
        strategy.backward(loss_sum(model, ragged_rows(0)[:1]), model, optimizer, final=final)

    backward(False)
    early = refused(lambda: strategy.optimizer_step(optimizer, model, None))
    backward(True)
    return early, refused(lambda: backward(True))


def measure() -> dict[int, dict[str, Any]]:
    out: dict[int, dict[str, Any]] = {}
    for stage in STAGES:
        strategy = deepspeed(stage)
        out[stage] = {
            "first": trained(strategy, 0.0, steps=1),
            "free": trained(strategy, 0.0),
            "clipped": trained(strategy, 0.5),
            "empty": one_rank_without_rows(strategy),
            "two": actor_and_critic(strategy),
            "nan": not_a_number(deepspeed(stage), float("nan")),
            "inf": not_a_number(deepspeed(stage), float("inf")),
            "scheduled": scheduled(strategy),
            "stale": fresh_after_a_forward(strategy),
            "order": wrong_order(strategy),
        }
    for stage in OFFLOADED:
        host = get_strategy(make_config({"zero_stage": stage, "adam_offload": True}))
        out[stage]["offloaded"] = {
            "clipped": trained(host, 0.5),
            "empty": one_rank_without_rows(host),
            "nan": not_a_number(host, float("nan")),
        }
    return out


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[int, dict[str, Any]]]:
    return run_spmd(measure, request.param, timeout_s=TIMEOUT_S)


def one_process() -> dict[str, Any]:
    strategy = get_strategy(make_config({"strategy": "single"}))
    return {
        "first": trained(strategy, 0.0, steps=1),
        "free": trained(strategy, 0.0),
        "clipped": trained(strategy, 0.5),
        "empty": one_rank_without_rows(strategy),
        "two": actor_and_critic(strategy),
        "scheduled": scheduled(strategy),
    }


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    return run_spmd(one_process, 1)[0]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["first", "free", "clipped"])
def test_parameters_and_norms(ranks: list[dict[int, dict[str, Any]]], oracle: dict[str, Any], stage: int, kind: str) -> None:
    expected, norms = oracle[kind]
    assert all(norm > 0.5 for norm in norms)  # so the clip at 0.5 did something
    for rank in ranks:
        found, found_norms = rank[stage][kind]
        assert largest_difference(found, expected) < 3e-5
        assert found_norms == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_without_rows_changes_nothing(ranks: list[dict[int, dict[str, Any]]], oracle: dict[str, Any], stage: int) -> None:
    for rank in ranks:
        assert largest_difference(rank[stage]["empty"], oracle["empty"]) < 3e-5


@pytest.mark.parametrize("stage", STAGES)
def test_max_norm_0_is_off(ranks: list[dict[int, dict[str, Any]]], oracle: dict[str, Any], stage: int) -> None:
    assert largest_difference(ranks[0][stage]["free"][0], oracle["clipped"][0]) > 1e-4
    assert largest_difference(ranks[0][stage]["clipped"][0], oracle["free"][0]) > 1e-4


@pytest.mark.parametrize("stage", OFFLOADED)
def test_adam_in_host_memory(ranks: list[dict[int, dict[str, Any]]], oracle: dict[str, Any], stage: int) -> None:
    for rank in ranks:
        found = rank[stage]["offloaded"]
        assert largest_difference(found["clipped"][0], oracle["clipped"][0]) < 3e-5
        assert found["clipped"][1] == pytest.approx(oracle["clipped"][1], rel=1e-5)
        assert largest_difference(found["empty"], oracle["empty"]) < 3e-5
        assert found["nan"] == SKIPPED


@pytest.mark.parametrize("stage", STAGES)
def test_actor_and_critic_each_as_if_alone(ranks: list[dict[int, dict[str, Any]]], oracle: dict[str, Any], stage: int) -> None:
    for rank in ranks:
        for found, expected in zip(rank[stage]["two"], oracle["two"], strict=True):
            assert largest_difference(found, expected) < 3e-5


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_sick_loss_on_one_rank_skips_the_step_on_all(ranks: list[dict[int, dict[str, Any]]], stage: int, kind: str) -> None:
    for rank in ranks:
        assert rank[stage][kind] == SKIPPED


@pytest.mark.parametrize("stage", STAGES)
def test_schedules_reach_the_optimizer(ranks: list[dict[int, dict[str, Any]]], oracle: dict[str, Any], stage: int) -> None:
    expected, rates = oracle["scheduled"]
    assert rates == pytest.approx([1e-3, 5e-4, 1e-3 / 3])
    for rank in ranks:
        found, found_rates = rank[stage]["scheduled"]
        assert found_rates == rates
        assert largest_difference(found, expected) < 3e-5


@pytest.mark.parametrize("stage", STAGES)
def test_a_forward_after_a_step_sees_the_new_weights(ranks: list[dict[int, dict[str, Any]]], stage: int) -> None:
    assert max(rank[stage]["stale"] for rank in ranks) < 1e-6


@pytest.mark.parametrize("stage", STAGES)
def test_calls_out_of_order_are_refused(ranks: list[dict[int, dict[str, Any]]], stage: int) -> None:
    for rank in ranks:
        early, late = rank[stage]["order"]
        assert "after backward(final=False): the gradients may not be reduced" in early
        assert late.startswith("backward after backward(final=True)")


class Line(torch.nn.Module):
    """y = w x, with w = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.layer.weight, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def by_hand() -> list[tuple[float, float]]:
    out = []
    for stage in STAGES:
        strategy = deepspeed(stage)
        model, optimizer = strategy.prepare_trainable(Line(), optimizer=AdamWSettings(learning_rate=0.125, eps=0.0))
        x, y = (([[1.0]], [[1.0]]), ([[2.0], [3.0]], [[1.0], [4.0]]))[strategy.world.rank]
        loss_share = ((model(torch.tensor(x)) - torch.tensor(y)) ** 2).sum() / 2 / 3
        strategy.backward(loss_share, model, optimizer)
        result = strategy.optimizer_step(optimizer, model, None, max_norm=0.0)
        out.append((result.grad_norm, full_parameters(strategy, model)["layer.weight"].item()))
    return out


def test_two_ranks_with_one_and_two_tokens_by_hand() -> None:
    """Residuals w x - y = 1, 3, 2, times x = 1, 2, 3: (1 + 6 + 6) / 3 tokens, and not the mean of the ranks' means, (1 + 6) / 2.

    AdamW's first step without eps moves by the learning rate: 2 - 0.125.
    """
    for rank in run_spmd(by_hand, 2):
        for norm, weight in rank:
            assert norm == pytest.approx(13 / 3, rel=1e-6)
            assert weight == pytest.approx(1.875, rel=1e-6)


def alone() -> list[Tensors]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    found = []
    for stage in (2, 3):  # the second strategy joins again after the first has left
        strategy = deepspeed(stage)
        assert strategy.world.world_size == 1
        found.append(trained(strategy, 0.5)[0])
        strategy.shutdown()
    return found


def test_one_process_without_torchrun_and_twice(oracle: dict[str, Any]) -> None:
    (found,) = run_spmd(alone, 1)
    for parameters in found:
        assert largest_difference(parameters, oracle["clipped"][0]) < 3e-5


def what_a_rank_prints() -> None:
    for stage, bf16 in ((2, False), (3, False), (1, True), (3, True)):
        strategy = get_strategy(make_config({"zero_stage": stage, "bf16": bf16}))
        model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
        train(strategy, model, optimizer, last=2)


def test_deepspeed_prints_no_banners(capfd: pytest.CaptureFixture[str]) -> None:
    run_spmd(what_a_rank_prints, 2)
    assert capfd.readouterr().out == ""
