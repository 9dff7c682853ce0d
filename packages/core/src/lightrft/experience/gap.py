"""Do engine and trainer agree on what was sampled? The gap of their log-probs, and what to do beyond its threshold."""

from __future__ import annotations

from typing import Literal

import torch

from lightrft.errors import MismatchError
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase


def logprob_gap(trajectories: list[Trajectory], trainer_logprobs: list[torch.Tensor], *, strategy: StrategyBase) -> dict[str, float]:
    """`rollout/logprob_gap` and `rollout/logprob_gap_max`: mean and largest |engine - trainer| over the tokens of these trajectories on all
    ranks, in nats, both under the untempered distribution. Empty where no rank has any. Collective."""
    differences = [
        (torch.tensor(t.completion.logprobs) - mine).abs()
        for t, mine in zip(trajectories, trainer_logprobs, strict=True)
        if t.completion.logprobs
    ]
    mine = torch.cat(differences) if differences else torch.zeros(0)
    totals = strategy.all_reduce({"count": float(mine.numel()), "sum": float(mine.double().sum())}, "sum")
    largest = strategy.all_reduce(float(mine.max()) if mine.numel() else 0.0, "max")
    if not totals["count"]:
        return {}
    return {"rollout/logprob_gap": totals["sum"] / totals["count"], "rollout/logprob_gap_max": largest}


def act_on_gap(gap: float, *, threshold: float, action: Literal["warn", "stop"], strategy: StrategyBase) -> None:
    """Says or raises, on all ranks alike, when the gap is beyond the threshold (or not a number).

    Raises:
        MismatchError: with `action` "stop".
    """
    if gap <= threshold:
        return
    message = (
        f"engine and trainer disagree: mean log-prob gap {gap:.4g} nats per token, threshold {threshold:.4g} (logprob_gap_threshold); "
        "look for stale engine weights, another dtype, or another tokenizer or chat template in the engine"
    )
    if action == "stop":
        raise MismatchError(message)
    strategy.print(f"WARNING: {message}")
