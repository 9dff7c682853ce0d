"""Do engine and trainer agree on what was sampled? The gap of their log-probs, and what to do beyond its threshold."""

from __future__ import annotations

from typing import Literal

import torch

from lightrft.algorithms.mismatch import mismatch_metrics, mismatch_sums
from lightrft.errors import MismatchError
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase


def logprob_gap(
    trajectories: list[Trajectory], trainer_logprobs: list[torch.Tensor], *, strategy: StrategyBase, cap: float = 2.0
) -> dict[str, float]:
    """How engine and trainer differ over those tokens of these trajectories whose engine log-probs are known, on all ranks:
    `mismatch_metrics` and the largest difference. Both under the untempered distribution. Empty where no rank has any. Collective.
    """
    found = [difference(t, mine) for t, mine in zip(trajectories, trainer_logprobs, strict=True) if t.completion.logprobs]
    mine = torch.cat(found) if found else torch.zeros(0)
    sums = strategy.all_reduce(mismatch_sums(mine, cap=cap), "sum")
    largest = strategy.all_reduce(float(mine.abs().max()) if mine.numel() else 0.0, "max")
    if not sums[0]:
        return {}
    return mismatch_metrics(sums) | {"rollout/logprob_gap_max": largest}


def difference(trajectory: Trajectory, trainer_logprobs: torch.Tensor) -> torch.Tensor:
    """log pi_trainer - log pi_engine of each of its tokens, float64 [T]."""
    assert trajectory.completion.logprobs is not None and len(trajectory.completion.logprobs) == len(trainer_logprobs)
    return trainer_logprobs.double() - torch.tensor(list(trajectory.completion.logprobs), dtype=torch.float64)


def act_on_gap(gap: float, *, threshold: float, action: Literal["warn", "correct", "stop"], strategy: StrategyBase) -> None:
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
