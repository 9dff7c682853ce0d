"""How do the rewards of a rollout become advantages? KL penalty, normalisation, one estimator, whitening over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.kl import kl_per_token
from lightrft.algorithms.running_moments import RunningMoments
from lightrft.algorithms.whiten import moment_sums, whitened
from lightrft.config.schema import Config
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase

AdvantageEstimator = Callable[[AdvantageInput], Advantages]


class AdvantageMaker:
    """Sets `advantages` (and `returns`, where there is a critic) of trajectories. `moments` go on from rollout to rollout: to be saved."""

    def __init__(self, *, strategy: StrategyBase, config: Config, estimator: AdvantageEstimator) -> None:
        self.strategy = strategy
        self.config = config
        self.estimator = estimator
        self.moments = RunningMoments()

    def run(self, trajectories: Sequence[Trajectory], *, kl_coef: float) -> dict[str, float]:
        """All completions of a prompt are on one rank. Returns metrics. Collective."""
        mask = mask_of(trajectories)
        rewards = self._rewards(trajectories)
        found = self._estimate(trajectories, rewards, mask, kl_coef) if trajectories else Advantages(advantages=mask)
        advantages = self._whitened(found, mask)
        for row, trajectory in enumerate(trajectories):
            trajectory.advantages = advantages[row, : trajectory.num_tokens]
            if found.returns is not None:
                trajectory.returns = found.returns[row, : trajectory.num_tokens]
        return self._metrics(trajectories)

    def _estimate(self, trajectories: Sequence[Trajectory], rewards: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> Advantages:
        penalties = _stacked([kl_coef * self._kl(t) for t in trajectories], mask) if self._penalises else None
        return self.estimator(
            AdvantageInput(
                rewards=rewards if penalties is None else rewards - penalties.sum(-1),
                group_ids=torch.tensor([t.group_id for t in trajectories], dtype=torch.int64),
                mask=mask,
                token_rewards=None if penalties is None else _on_last_token(rewards, mask) - penalties,
                values=_stacked([t.values for t in trajectories], mask).float() if trajectories[0].values is not None else None,
                baselines=self._baselines(trajectories),
                gamma=self.config.gamma,
                lambd=self.config.lambd,
            )
        )

    @property
    def _penalises(self) -> bool:
        return self.config.kl_coef > 0 and self.config.kl_in == "reward"

    def _kl(self, trajectory: Trajectory) -> torch.Tensor:
        assert trajectory.old_logprobs is not None and trajectory.initial_logprobs is not None
        return kl_per_token(trajectory.old_logprobs.double(), trajectory.initial_logprobs.double(), estimator=self.config.kl_estimator)

    def _rewards(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """float64 [N]; with `normalize_rewards` in deviations of the rewards so far, this rollout's of all ranks included."""
        rewards = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
        if not self.config.normalize_rewards:
            return rewards
        totals = self.strategy.all_reduce({"count": float(len(rewards)), "sum": float(rewards.sum())}, "sum")
        mean = totals["sum"] / max(totals["count"], 1.0)
        deviations = self.strategy.all_reduce(float(((rewards - mean) ** 2).sum()), "sum")
        self.moments.update(count=totals["count"], mean=mean, deviations=deviations)
        return torch.tensor([self.moments.normalized(reward) for reward in rewards.tolist()], dtype=torch.float64)

    def _baselines(self, trajectories: Sequence[Trajectory]) -> torch.Tensor | None:
        """The greedy completions' rewards, on the scale of the others'."""
        if trajectories[0].baseline is None:
            return None
        found = [float(t.baseline) for t in trajectories if t.baseline is not None]
        return torch.tensor([self.moments.normalized(b) if self.config.normalize_rewards else b for b in found], dtype=torch.float64)

    def _whitened(self, found: Advantages, mask: torch.Tensor) -> torch.Tensor:
        """The estimator says on every rank whether it asks for it, except where a rank has no completions: ranks agree."""
        asked = found.whiten if self.config.whiten_advantages == "auto" else self.config.whiten_advantages == "yes"
        sums = self.strategy.all_reduce(torch.cat([moment_sums(found.advantages, mask), torch.tensor([float(asked)]).double()]), "sum")
        return whitened(found.advantages, mask, sums=sums[:3]) if sums[3] else found.advantages

    def _metrics(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        ids = torch.tensor([t.group_id for t in trajectories], dtype=torch.int64)
        counts = torch.unique(ids, return_counts=True)[1]
        advantages = torch.cat([torch.zeros(0), *(t.advantages for t in trajectories if t.advantages is not None)]).double()
        sums = {"groups": float(len(counts)), "alone": float((counts == 1).sum())}
        sums |= {"tokens": float(len(advantages)), "squared": float((advantages**2).sum()), "sum": float(advantages.sum())}
        sums |= {"completions": float(len(trajectories)), "kl": sum(_log_ratio_to_initial(t) for t in trajectories)}
        total = self.strategy.all_reduce(sums, "sum")
        tokens = max(total["tokens"], 1.0)
        variance = total["squared"] / tokens - (total["sum"] / tokens) ** 2
        metrics = {
            "rollout/advantage_std": max(variance, 0.0) ** 0.5,
            "rollout/groups_of_one": total["alone"] / max(total["groups"], 1.0),
        }
        return metrics | ({"rollout/kl": total["kl"] / max(total["completions"], 1.0)} if self.config.kl_coef > 0 else {})


def _log_ratio_to_initial(trajectory: Trajectory) -> float:
    """log pi - log pi_initial of a whole completion: the k1 estimate of its KL, nats; 0 without an initial model."""
    if trajectory.old_logprobs is None or trajectory.initial_logprobs is None:
        return 0.0
    return float((trajectory.old_logprobs.double() - trajectory.initial_logprobs.double()).sum())


def mask_of(trajectories: Sequence[Trajectory]) -> torch.Tensor:
    """float32 [N, T], T the longest completion: 1 on each one's tokens."""
    lengths = torch.tensor([t.num_tokens for t in trajectories], dtype=torch.int64)
    widest = int(lengths.max()) if len(lengths) else 0
    return (torch.arange(widest)[None] < lengths[:, None]).float()


def _stacked(rows: Sequence[torch.Tensor | None], mask: torch.Tensor) -> torch.Tensor:
    """float64 [N, T], zeros beyond each row's end."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for index, row in enumerate(rows):
        assert row is not None
        out[index, : len(row)] = row
    return out


def _on_last_token(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(mask.shape, dtype=torch.float64)
    lengths = mask.sum(-1).long()
    rows = torch.arange(len(rewards))[lengths > 0]
    out[rows, lengths[rows] - 1] = rewards[rows]
    return out
