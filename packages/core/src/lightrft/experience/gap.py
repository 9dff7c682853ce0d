"""Do engine and trainer agree on what was sampled? The gap of their log-probs, what to do beyond its threshold, weights that correct it."""

from __future__ import annotations

import math
from typing import Literal

import torch

from lightrft.algorithms.mismatch import Beyond, MismatchLevel, correction_weights, log_weights, mismatch_metrics, mismatch_sums
from lightrft.errors import MismatchError
from lightrft.experience.trajectory import Trajectory
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.strategy_base import StrategyBase


def logprob_gap(
    trajectories: list[Trajectory],
    trainer_logprobs: list[torch.Tensor],
    *,
    strategy: StrategyBase,
    cap: float = 2.0,
    level: MismatchLevel = "token",
) -> dict[str, float]:
    """How engine and trainer differ over those tokens of these trajectories whose engine log-probs are known, on all ranks:
    `mismatch_metrics` and the largest difference. Both under the untempered distribution. Empty where no rank has any. Collective, once.
    """
    found = [difference(t, mine) for t, mine in zip(trajectories, trainer_logprobs, strict=True) if t.completion.logprobs]
    none = torch.zeros(0, dtype=torch.float64)
    mine = torch.cat([none, *found])
    weights = torch.cat([none, *(log_weights(d, level=level) for d in found)])
    largest = mine.abs().max()[None] if len(mine) else mine.new_zeros(1)
    rows = strategy.all_gather(torch.cat([mismatch_sums(mine, cap=cap, log_weight=weights), largest])[None])
    sums = rows[:, :-1].sum(0)
    if not sums[0]:
        return {}
    return mismatch_metrics(sums) | {"rollout/logprob_gap_max": float(rows[:, -1].max())}


def difference(trajectory: Trajectory, trainer_logprobs: torch.Tensor) -> torch.Tensor:
    """log pi_trainer - log pi_engine of each of its tokens, float64 [T]."""
    assert trajectory.completion.logprobs is not None and len(trajectory.completion.logprobs) == len(trainer_logprobs)
    return trainer_logprobs.double() - torch.tensor(list(trajectory.completion.logprobs), dtype=torch.float64)


def act_on_gap(gap: float, *, threshold: float, action: Literal["warn", "correct", "stop"], warnings: Warnings) -> None:
    """Says or raises, on all ranks alike, when the gap is beyond the threshold (or not a number).

    Raises:
        MismatchError: with `action` "stop"; with "correct" where the gap is not finite, for then no weight makes up for it.
    """
    if gap <= threshold:
        return
    message = (
        f"engine and trainer disagree: mean log-prob gap {gap:.4g} nats per token, threshold {threshold:.4g} (logprob_gap_threshold); "
        "look for stale engine weights, another dtype, or another tokenizer or chat template in the engine"
    )
    if action == "stop" or (action == "correct" and not math.isfinite(gap)):
        raise MismatchError(message)
    corrected = "; the update is corrected by truncated importance sampling" if action == "correct" else ""
    warnings.say("logprob_gap", message + corrected)


def add_corrections(
    trajectories: list[Trajectory],
    trainer_logprobs: list[torch.Tensor],
    *,
    level: MismatchLevel,
    cap: float,
    beyond: Beyond = "truncate",
    floor: float = 0.0,
) -> None:
    """Sets `correction` of each trajectory. Local.

    Raises:
        MismatchError: a completion has no engine log-probs, which are never made up.
    """
    for trajectory, mine in zip(trajectories, trainer_logprobs, strict=True):
        if trajectory.completion.logprobs is None:
            raise MismatchError(
                "logprob_gap_action='correct' needs the engine's log-probs of every completion, found one without; "
                "generate with logprobs=True, or use warn"
            )
        trajectory.correction = correction_weights(difference(trajectory, mine), level=level, cap=cap, beyond=beyond, floor=floor)
