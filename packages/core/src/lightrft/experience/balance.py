"""How do ranks get about as many tokens each? Completions whose advantages are known move; the update stays the same."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.distributed.collectives import gather_objects
from lightrft.experience.groups import exchange
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase


def balanced(trajectories: Sequence[Trajectory], *, strategy: StrategyBase) -> list[Trajectory]:
    """This rank's completions after all ranks have exchanged some: counts differ by one at most, tokens as little as `assign` finds.

    Losses divide by global counts, so a step over the whole rollout is the same; with several steps, which completions meet in one
    depends on the ranks as it does without. Collective.
    """
    lengths = gather_objects([t.length for t in trajectories], group=strategy.world.group)
    return exchange(trajectories, assign(lengths)[strategy.world.rank], strategy=strategy)


def assign(lengths: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each rank's items, by their lengths, the ranks where they go: the longest first to the lightest rank with room for one more."""
    world = len(lengths)
    total = sum(map(len, lengths))
    room = [total // world + (rank < total % world) for rank in range(world)]
    load = [0] * world
    targets = [[0] * len(mine) for mine in lengths]
    for length, rank, index in sorted(((n, r, i) for r, mine in enumerate(lengths) for i, n in enumerate(mine)), reverse=True):
        # Of equally light ranks its own, so that what need not move stays.
        to = min((other for other in range(world) if room[other]), key=lambda other: (load[other], other != rank, other))
        targets[rank][index] = to
        room[to] -= 1
        load[to] += length
    return targets
