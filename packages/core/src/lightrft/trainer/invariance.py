"""Whether an update depends on how its batch is partitioned: one recorded rollout, over ranks and micro-batches several ways, and what
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lightrft.batch.stages import Scored
from lightrft.config.schema import Config
from lightrft.experience.advantages import AdvantageMaker
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StrategyBase
from lightrft.trainer.critic_update import CriticUpdate
from lightrft.trainer.update import PolicyUpdate

Tensors = dict[str, torch.Tensor]
Make = Callable[[AdamWSettings], tuple[torch.nn.Module, Optimizer]]
Spread = Literal["even", "dealt", "one rank"]

PLAIN_STEP = AdamWSettings(learning_rate=1e10, betas=(0.0, 0.0), eps=1e6)
"""An eps far above every gradient makes AdamW a plain gradient step, of learning_rate / eps: the gradient can be read off the weights that
any backend gives.
"""
STANDING = AdamWSettings(learning_rate=1e-30)
"""Steps that change no weight."""
MICRO_SIZES = (1, 2, 4)
BOUND = 5e-6
"""On a difference relative to the largest entry of its tensor, or to a hundredth of the largest of all where that is more; of small models
in float32.
"""


@dataclass(frozen=True)
class Split:
    """`spread`: groups in order, a slice for each rank; dealt out one by one from the last rank on; or all to the first rank, as one
    process has them. `micro`: completions in one forward and backward.
    """

    spread: Spread
    micro: int


@dataclass(frozen=True)
class Models:
    """How each split gets a fresh actor and, where the estimator has one, a critic; collective."""

    actor: Make
    critic: Make | None = None


def splits(config: Config, *, world_size: int) -> list[Split]:
    """The first is what the others are compared with."""
    spreads: tuple[Spread, ...] = ("even", "dealt", "one rank") if world_size > 1 else ("even",)
    sizes = dict.fromkeys([config.micro_train_batch_size, *MICRO_SIZES])
    return [Split(spread, size) for spread in spreads for size in sizes]


def gradients(batch: Scored, split: Split, *, strategy: StrategyBase, config: Config, models: Models) -> Tensors:
    """The gradient of one step over `batch` (the same on every rank), full, under `actor/NAME` and `critic/NAME`. Collective.

    Advantages are made anew in each split. The strategy's `max_norm` is 0.
    """
    total = len(batch) * strategy.world.world_size
    config = config.model_copy(update={"micro_train_batch_size": split.micro, "train_batch_size": total, "max_epochs": 1})
    registry = strategy.registry
    places = rows_of_rank(batch.group_ids, split.spread, rank=strategy.world.rank, world_size=strategy.world.world_size)
    rows = _advantages(strategy, config).run(batch.select(places), kl_coef=config.kl_coef)

    def policy(actor: torch.nn.Module, optimizer: Optimizer) -> None:
        loss = registry.load("policy_loss", config.policy_loss)
        PolicyUpdate(strategy=strategy, config=config, actor=actor, optimizer=optimizer, scheduler=None, policy_loss=loss).run(rows, seed=0)

    def critic(model: torch.nn.Module, optimizer: Optimizer) -> None:
        CriticUpdate(strategy=strategy, config=config, critic=model, optimizer=optimizer, scheduler=None).run(rows, seed=0)

    found = _step(strategy, models.actor, policy, "actor")
    return found if models.critic is None else found | _step(strategy, models.critic, critic, "critic")


def first_step(mine: Scored, *, strategy: StrategyBase, config: Config, models: Models) -> dict[str, float]:
    """The metrics of an update of this rank's slice, in the micro-batches that it was scored for, with weights that stay as they are: all
    of its ratios should be 1. Collective.
    """
    rows = _advantages(strategy, config).run(mine, kl_coef=config.kl_coef)
    actor, optimizer = models.actor(STANDING)
    loss = strategy.registry.load("policy_loss", config.policy_loss)
    update = PolicyUpdate(strategy=strategy, config=config, actor=actor, optimizer=optimizer, scheduler=None, policy_loss=loss)
    return update.run(rows, seed=config.seed)


def _advantages(strategy: StrategyBase, config: Config) -> AdvantageMaker:
    registry = strategy.registry
    spec = registry.spec("advantage", config.advantage_estimator)
    estimator = registry.load("advantage", config.advantage_estimator)
    return AdvantageMaker(strategy=strategy, config=config, estimator=estimator, critic=spec.critic, greedy=spec.greedy)


def rows_of_rank(group_ids: torch.Tensor, spread: Spread, *, rank: int, world_size: int) -> torch.Tensor:
    """The places int64 [K] of this rank's sequences: whole groups, which are numbered from 0."""
    number = int(group_ids.max()) + 1 if len(group_ids) else 0
    if spread == "one rank":
        mine = group_ids >= (0 if rank == 0 else number)
    elif spread == "dealt":
        mine = (world_size - 1 - group_ids) % world_size == rank
    else:
        mine = (group_ids >= number * rank // world_size) & (group_ids < number * (rank + 1) // world_size)
    return mine.nonzero().flatten()


def difference(found: Tensors, expected: Tensors) -> float:
    """The largest, see `BOUND`; NaN where something is not a number."""
    assert found.keys() == expected.keys() and expected
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    worst = [
        float((found[name] - tensor).abs().max()) / max(float(tensor.abs().max()), 0.01 * largest, 1e-30)
        for name, tensor in expected.items()
    ]
    return float(torch.tensor(worst, dtype=torch.float64).max())


def _step(strategy: StrategyBase, make: Make, run: Callable[[torch.nn.Module, Optimizer], None], role: str) -> Tensors:
    model, optimizer = make(PLAIN_STEP)
    before = _parameters(strategy, model)
    run(model, optimizer)
    after = _parameters(strategy, model)
    unit = PLAIN_STEP.eps / PLAIN_STEP.learning_rate
    return {f"{role}/{name}": (tensor - after[name]) * unit for name, tensor in before.items()}


def _parameters(strategy: StrategyBase, model: Any) -> Tensors:
    """Every parameter, adapters beside their matrices, on the CPU."""
    buckets = strategy._export_weights(model, None, strategy.config.weight_bucket_mb * 2**20)
    return {weight.names[0]: weight.tensor.detach().float().cpu().clone() for bucket in buckets for weight in bucket}
