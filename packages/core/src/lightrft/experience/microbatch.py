"""How is a rank's share cut into micro-batches?"""

from __future__ import annotations

from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase


def micro_batches(trajectories: list[Trajectory], *, size: int) -> list[list[Trajectory]]:
    """Lists of at most `size`, sorted by length so that little is padding."""
    ordered = sorted(trajectories, key=lambda t: t.length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def even_micro_batches(trajectories: list[Trajectory], *, size: int, strategy: StrategyBase) -> list[list[Trajectory]]:
    """`micro_batches`, filled up with empty lists to the largest number of any rank.

    Collective: sharded models need the same number of passes everywhere.
    """
    mine = micro_batches(trajectories, size=size)
    most: int = strategy.all_reduce(len(mine), "max")
    return mine + [[] for _ in range(most - len(mine))]
