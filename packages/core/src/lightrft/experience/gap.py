"""Do engine and trainer agree on what was sampled? The gap of their log-probs, what to do beyond its threshold, weights that correct it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from lightrft.algorithms.mismatch import MismatchLevel, mismatch_metrics, mismatch_sums, truncated_weights
from lightrft.errors import MismatchError
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase

GapAction = Literal["warn", "correct", "stop"]


def logprob_gap(
    trajectories: Sequence[Trajectory],
    trainer_logprobs: Sequence[torch.Tensor],
    *,
    level: MismatchLevel,
    cap: float,
    strategy: StrategyBase,
) -> dict[str, float]:
    """The metrics `rollout/logprob_gap*` (nats) and `rollout/mismatch_*` over the tokens of all ranks whose engine log-probs are known,
    both sides under the untempered distribution; see `mismatch_metrics`. Empty where no rank has any. Collective, one gather of 7 numbers.
    """
    pairs = [
        (mine, torch.tensor(t.completion.logprobs, dtype=torch.float64))
        for t, mine in zip(trajectories, trainer_logprobs, strict=True)
        if t.completion.logprobs is not None
    ]
    return mismatch_metrics(strategy.all_gather(mismatch_sums(pairs, level=level, cap=cap)[None]))


def act_on_gap(gap: float, *, threshold: float, action: GapAction, strategy: StrategyBase) -> None:
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
    strategy.print(f"WARNING: {message}{corrected}")


def add_mismatch_weights(
    trajectories: Sequence[Trajectory], trainer_logprobs: Sequence[torch.Tensor], *, level: MismatchLevel, cap: float
) -> None:
    """Sets `mismatch_weights` of each trajectory. Local.

    Raises:
        MismatchError: a completion has no engine log-probs.
    """
    for trajectory, mine in zip(trajectories, trainer_logprobs, strict=True):
        theirs = trajectory.completion.logprobs
        if theirs is None:
            raise MismatchError(
                "logprob_gap_action='correct' needs the engine's log-probs of every completion, found one without; "
                "generate with logprobs=True, or use warn"
            )
        trajectory.mismatch_weights = truncated_weights(mine, torch.tensor(theirs, dtype=torch.float64), level=level, cap=cap)
