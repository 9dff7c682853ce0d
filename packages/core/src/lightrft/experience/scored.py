"""What are this rank's samples worth, or whose reward failed? All ranks go on, or all stop at the same place."""

from __future__ import annotations

from collections.abc import Callable

from lightrft.distributed.collectives import agree
from lightrft.errors import PeerError, RewardError
from lightrft.rewards.score import Scores
from lightrft.strategy.strategy_base import StrategyBase


def scored_everywhere(score: Callable[[], Scores], *, strategy: StrategyBase) -> Scores:
    """What `score` returns, once it has returned on every rank. Collective; `score` itself is not.

    Raises:
        RewardError: a reward failed, here or on another rank; on all ranks, so that they can still write a checkpoint together.
    """
    scores = Scores(total=[], parts={})
    error: RewardError | None = None
    try:
        scores = score()
    except RewardError as caught:
        error = caught
    try:
        agree(error, group=strategy.world.group, doing="scoring completions")
    except PeerError as failed:
        raise RewardError(str(failed)) from failed
    return scores
