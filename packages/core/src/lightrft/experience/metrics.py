"""A rollout in numbers, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightrft.batch.stages import Scored
from lightrft.observe.metrics import StepMetrics


def add_rollout_metrics(metrics: StepMetrics, batch: Scored, *, copies: int = 1) -> None:
    """Means over all completions (rewards, lengths) or sampled tokens (entropy) of all ranks. Local.

    `rollout/zero_variance_groups` and `rollout/truncated` are fractions; `rollout/entropy` is the mean of -log pi of the sampled tokens,
    nats, left out where the old log-probs are the update's own (not a number here).
    """
    rewards, lengths = batch.rewards, batch.num_sampled
    groups: dict[int, set[float]] = {}
    for group, reward in zip(batch.group_ids.tolist(), rewards.tolist(), strict=True):
        groups.setdefault(group, set()).add(reward)
    sums = {
        "count": float(len(batch)),
        "reward": float(rewards.sum()),
        "reward_squared": float((rewards**2).sum()),
        "tokens": float(lengths.sum()),
        "truncated": float(batch.truncated.sum()),
        "groups": float(len(groups)),
        "flat_groups": float(sum(len(values) == 1 for values in groups.values())),
        "surprise": -float(batch.old_logprobs.double().sum()),
    }
    metrics.add("rollout", sums, _finish, largest={"longest": float(lengths.max()) if len(batch) else 0.0}, copies=copies)


def _finish(total: Mapping[str, float]) -> dict[str, float]:
    count, tokens = max(total["count"], 1.0), max(total["tokens"], 1.0)
    mean = total["reward"] / count
    entropy = total["surprise"] / tokens
    found = {
        "rollout/reward": mean,
        "rollout/reward_std": math.sqrt(max(total["reward_squared"] / count - mean**2, 0.0)),
        "rollout/length_mean": total["tokens"] / count,
        "rollout/length_max": total["longest"],
        "rollout/truncated": total["truncated"] / count,
        "rollout/zero_variance_groups": total["flat_groups"] / max(total["groups"], 1.0),
    }
    return found if math.isnan(entropy) else found | {"rollout/entropy": entropy}
