"""The rewards of this rank's samples: functions and servers on each rank, reward models on all together; all go on, or all stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lightrft.distributed.collectives import agree
from lightrft.errors import PeerError, RewardError
from lightrft.rewards.load import NamedReward
from lightrft.rewards.models.classifier import RewardModel
from lightrft.rewards.score import Scores, checked, concerned, score, spread, summed
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample

T = TypeVar("T")


def of_functions(rewards: Sequence[NamedReward]) -> list[NamedReward]:
    """Those that a rank asks by itself."""
    return [reward for reward in rewards if not isinstance(reward.function, RewardModel)]


def score_everywhere(
    samples: Sequence[Sample],
    *,
    rewards: Sequence[NamedReward],
    strategy: StrategyBase,
    reward_key: str = "",
    functions: Callable[[], Scores] | None = None,
) -> Scores:
    """The scores of this rank's samples, once all ranks have theirs. Parts are in the order of `rewards`. Collective.

    `functions` gives the scores of `of_functions(rewards)`, where they were begun elsewhere; it is not collective.

    Raises:
        RewardError: a reward failed, here or on another rank; on all ranks, so that they can still write a checkpoint together.
    """
    names = [reward.name for reward in rewards]

    def asked() -> dict[str, list[float | None]]:
        local = of_functions(rewards)
        return (functions() if functions else score(samples, rewards=local, reward_key=reward_key, names=names)).parts

    parts = dict(_together(asked, strategy))
    for reward in rewards:
        if isinstance(reward.function, RewardModel):
            parts[reward.name] = _of_model(reward, samples, names=names, strategy=strategy, reward_key=reward_key)
    return summed({name: parts[name] for name in names}, rewards=rewards, number=len(samples))


def _of_model(
    reward: NamedReward, samples: Sequence[Sample], *, names: Sequence[str], strategy: StrategyBase, reward_key: str
) -> list[float | None]:
    """Every rank takes part in every pass of the model, so what may fail on one rank alone is agreed on before and after."""
    at = _together(lambda: concerned(samples, name=reward.name, names=names, reward_key=reward_key), strategy)
    mine = [samples[index] for index in at]
    found = reward.function(mine)
    return spread(_together(lambda: checked(found, mine, name=reward.name), strategy), at, number=len(samples))


def _together(compute: Callable[[], T], strategy: StrategyBase) -> T:
    done: list[T] = []
    error: RewardError | None = None
    try:
        done.append(compute())
    except RewardError as caught:
        error = caught
    try:
        agree(error, group=strategy.world.group, doing="scoring completions")
    except PeerError as failed:
        raise RewardError(str(failed)) from failed
    return done[0]
