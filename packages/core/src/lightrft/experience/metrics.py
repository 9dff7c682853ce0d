"""What does a rollout look like in numbers, over all ranks?"""

from __future__ import annotations

import math

import torch

from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase


def rollout_metrics(trajectories: list[Trajectory], *, strategy: StrategyBase) -> dict[str, float]:
    """Means over all completions (rewards, lengths) or tokens (entropy) of all ranks. Collective.

    `rollout/zero_variance_groups` and `rollout/truncated` are shares; `rollout/entropy` is the mean of -log pi of the sampled tokens, nats.
    """
    rewards = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
    lengths = torch.tensor([t.num_tokens for t in trajectories], dtype=torch.float64)
    groups: dict[int, set[float]] = {}
    for t in trajectories:
        groups.setdefault(t.group_id, set()).add(t.reward)
    sums = strategy.all_reduce(
        {
            "count": float(len(trajectories)),
            "reward": float(rewards.sum()),
            "reward_squared": float((rewards**2).sum()),
            "tokens": float(lengths.sum()),
            "truncated": float(sum(t.completion.finish_reason == "length" for t in trajectories)),
            "groups": float(len(groups)),
            "flat_groups": float(sum(len(values) == 1 for values in groups.values())),
            "surprise": -sum(float(t.old_logprobs.double().sum()) for t in trajectories if t.old_logprobs is not None),
        },
        "sum",
    )
    longest = strategy.all_reduce(float(lengths.max()) if len(lengths) else 0.0, "max")
    count, tokens = max(sums["count"], 1.0), max(sums["tokens"], 1.0)
    mean = sums["reward"] / count
    return {
        "rollout/reward": mean,
        "rollout/reward_std": math.sqrt(max(sums["reward_squared"] / count - mean**2, 0.0)),
        "rollout/length_mean": sums["tokens"] / count,
        "rollout/length_max": longest,
        "rollout/truncated": sums["truncated"] / count,
        "rollout/zero_variance_groups": sums["flat_groups"] / max(sums["groups"], 1.0),
        "rollout/entropy": sums["surprise"] / tokens,
    }
