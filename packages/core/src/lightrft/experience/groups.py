"""How do completions change their rank? Whole groups before advantages are known, single completions afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lightrft.distributed.collectives import gather_objects
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase

T = TypeVar("T")


def by_group(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The completions of each prompt, groups in the order of their first completion."""
    groups: dict[int, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group_id, []).append(trajectory)
    return list(groups.values())


def has_signal(group: Sequence[Trajectory]) -> bool:
    """Whether two of its rewards differ."""
    return len({t.reward for t in group}) > 1


def exchange(mine: Sequence[T], targets: Sequence[int], *, strategy: StrategyBase) -> list[T]:
    """Each item on the rank that its target says: the ones that stay first, then those of the other ranks in rank order. Collective.

    What moves is pickled and seen by every rank, so it should be little.
    """
    rank = strategy.world.rank
    leaving = [(target, item) for target, item in zip(targets, mine, strict=True) if target != rank]
    arriving = [item for moved in gather_objects(leaving, group=strategy.world.group) for target, item in moved if target == rank]
    return [item for target, item in zip(targets, mine, strict=True) if target == rank] + arriving


def even_targets(counts: Sequence[int]) -> list[list[int]]:
    """For each rank's items the ranks where they go, so that all have about as many: as few move as can be, the last ones first.

    Ranks that take one more than others (where the total cannot be divided) are the first ones.
    """
    world = len(counts)
    shares = [sum(counts) // world + (rank < sum(counts) % world) for rank in range(world)]
    places = [rank for rank in range(world) for _ in range(max(shares[rank] - counts[rank], 0))]
    targets = []
    for rank, count in enumerate(counts):
        stay = min(count, shares[rank])
        targets.append([rank] * stay + places[: count - stay])
        places = places[count - stay :]
    return targets
