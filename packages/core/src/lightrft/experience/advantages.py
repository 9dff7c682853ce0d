"""Rewards of a rollout become advantages: KL penalty, normalisation, one estimator, whitening over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.kl import kl_per_token
from lightrft.algorithms.running_moments import RunningMoments
from lightrft.algorithms.whiten import moment_sums, whitened
from lightrft.batch.grid import Grid
from lightrft.batch.stages import Scored, Trainable
from lightrft.config.schema import Config
from lightrft.config.sections import settings_of
from lightrft.distributed.collectives import gather_rows
from lightrft.observe.metrics import StepMetrics
from lightrft.strategy.strategy_base import StrategyBase

AdvantageEstimator = Callable[[AdvantageInput], Advantages]


class AdvantageMaker:
    """Gives scored sequences `advantages` and `returns`. `moments` go on from rollout to rollout: to be saved.

    `critic`, `greedy`: whether the estimator is given the critic's values, and the rewards of greedy answers.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        estimator: AdvantageEstimator,
        metrics: StepMetrics | None = None,
        critic: bool = False,
        greedy: bool = False,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.estimator = estimator
        self.metrics = metrics or StepMetrics()
        self.critic = critic
        self.greedy = greedy
        self.settings = settings_of(config, strategy.registry.spec("advantage", config.advantage_estimator))
        self.moments = RunningMoments()

    def run(self, batch: Scored, *, kl_coef: float) -> Trainable:
        """All completions of a prompt are on one rank. Collective."""
        grid = batch.grid
        rewards = self._normalized(batch.rewards)
        found = self._estimate(batch, grid, rewards, kl_coef) if len(batch) else Advantages(advantages=grid.mask())
        advantages = batch.on_tokens(grid.flat(self._whitened(found, grid.mask())))
        returns = torch.zeros_like(advantages) if found.returns is None else batch.on_tokens(grid.flat(found.returns))
        trainable = batch.as_stage(Trainable, advantages=advantages, returns=returns)
        self._count(trainable)
        return trainable

    def _estimate(self, batch: Scored, grid: Grid, rewards: torch.Tensor, kl_coef: float) -> Advantages:
        penalties = grid.spread(kl_coef * self._kl(batch)) if self.config.kl_coef > 0 and self.config.kl_in == "reward" else None
        mask = grid.mask()
        by_turn = self.config.turn_credit == "turn"
        by_token = on_turns(batch, rewards, mask, weight=self._environment_weight()) if by_turn else _on_last_token(rewards, mask)
        return self.estimator(
            AdvantageInput(
                rewards=rewards if penalties is None else rewards - penalties.sum(-1),
                group_ids=batch.group_ids,
                mask=mask,
                token_rewards=by_token - (0.0 if penalties is None else penalties) if by_turn or penalties is not None else None,
                values=grid.spread(batch.sampled(batch.values)) if self.critic else None,
                baselines=self._baselines(batch) if self.greedy else None,
                gamma=self.config.gamma,
                lambd=self.config.lambd,
                settings=self.settings,
            )
        )

    def _environment_weight(self) -> float:
        """Of the reward `environment` in the sum."""
        return float(dict(zip(self.config.reward, self.config.reward_weights, strict=False)).get("environment", 1.0))

    def _kl(self, batch: Scored) -> torch.Tensor:
        """float64 [M]."""
        old, reference = batch.sampled(batch.old_logprobs).double(), batch.sampled(batch.reference_logprobs).double()
        return kl_per_token(old, reference, estimator=self.config.kl_estimator)

    def _normalized(self, rewards: torch.Tensor) -> torch.Tensor:
        """float64 [N]; with `normalize_rewards` in deviations of the rewards so far, this rollout's of all ranks included."""
        if not self.config.normalize_rewards:
            return rewards
        count, total = self._over_data(torch.stack([torch.tensor(float(len(rewards))).double(), rewards.sum()])).tolist()
        mean = total / max(count, 1.0)
        deviations = float(self._over_data(((rewards - mean) ** 2).sum()[None]))
        self.moments.update(count=count, mean=mean, deviations=deviations)
        return self._in_deviations(rewards)

    def _baselines(self, batch: Scored) -> torch.Tensor:
        """The greedy answers' rewards, on the scale of the others'."""
        return self._in_deviations(batch.baselines) if self.config.normalize_rewards else batch.baselines

    def _in_deviations(self, rewards: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self.moments.normalized(reward) for reward in rewards.tolist()], dtype=torch.float64)

    def _whitened(self, found: Advantages, mask: torch.Tensor) -> torch.Tensor:
        """The estimator says on every rank whether it asks for it, except where a rank has no completions: ranks agree."""
        asked = found.whiten if self.config.whiten_advantages == "auto" else self.config.whiten_advantages == "yes"
        sums = self._over_data(torch.cat([moment_sums(found.advantages, mask), torch.tensor([float(asked)]).double()]))
        return whitened(found.advantages, mask, sums=sums[:3]) if sums[3] else found.advantages

    def _over_data(self, sums: torch.Tensor) -> torch.Tensor:
        """float64 [K]: the sum over the ranks that hold different rows. Collective."""
        return gather_rows(sums, group=self.strategy.mesh.data.group).sum(0)

    def _count(self, batch: Trainable) -> None:
        advantages = batch.sampled(batch.advantages).double()
        groups = torch.unique(batch.group_ids, return_counts=True)[1]
        sums = {"groups": float(len(groups)), "alone": float((groups == 1).sum())}
        sums |= {"tokens": float(len(advantages)), "squared": float((advantages**2).sum()), "sum": float(advantages.sum())}
        ratio = (batch.old_logprobs.double() - batch.reference_logprobs.double()).sum()  # k1 estimates of each completion's KL, nats
        sums |= {"completions": float(len(batch)), "kl": float(ratio)}
        self.metrics.add("advantages", sums, self._metrics, copies=self.strategy.mesh.sequence.size)

    def _metrics(self, total: Mapping[str, float]) -> dict[str, float]:
        tokens = max(total["tokens"], 1.0)
        variance = total["squared"] / tokens - (total["sum"] / tokens) ** 2
        metrics = {
            "rollout/advantage_std": max(variance, 0.0) ** 0.5,
            "rollout/groups_of_one": total["alone"] / max(total["groups"], 1.0),
        }
        return metrics | ({"rollout/kl": total["kl"] / max(total["completions"], 1.0)} if self.config.kl_coef > 0 else {})


def on_turns(batch: Scored, rewards: torch.Tensor, mask: torch.Tensor, *, weight: float) -> torch.Tensor:
    """float64 [N, T] that sums up to `rewards` [N]: what the environment gave for each turn, times `weight`, on the turn's last token; what
    is left of the reward on the episode's last token. An episode whose environment failed earned nothing of it.
    """
    found = torch.zeros(mask.shape, dtype=torch.float64)
    for row, sample in enumerate(batch.samples):
        length, episode = int(mask[row].sum()), sample.episode
        for tokens, earned in episode.earned if episode is not None and length and not episode.error else ():
            found[row, max(tokens - 1, 0)] += weight * earned
    return found + _on_last_token(rewards - found.sum(-1), mask)


def _on_last_token(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(mask.shape, dtype=torch.float64)
    lengths = mask.sum(-1).long()
    rows = torch.arange(len(rewards))[lengths > 0]
    out[rows, lengths[rows] - 1] = rewards[rows]
    return out
