"""The axes along which the world's ranks share work: data, sequence and engine.

The ranks of one sequence are neighbours: world rank = data rank * size of the sequence axis + sequence rank.
With 4 ranks and sequences of 2, ranks 0 and 1 hold the two halves of the same rows, as do 2 and 3; 0 and 2
hold the same half of different rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from lightrft.distributed.world import World


@dataclass(frozen=True, kw_only=True)
class Axis:
    """This rank among those that share something with it.

    `ranks` are their world ranks, in order; `group` is None where there is one, or no process group.
    """

    ranks: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup | None

    @property
    def size(self) -> int:
        """The number of ranks along this axis."""
        return len(self.ranks)

    @property
    def is_first(self) -> bool:
        """Whether this process is the axis's first rank."""
        return self.rank == 0

    @classmethod
    def alone(cls, world: World) -> Axis:
        """An axis of this rank only."""
        return cls(ranks=(world.rank,), rank=0, group=None)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The world's ranks by axis.

    `data`: ranks that hold different rows, over which samplers, mini-batches and evaluation count.
    `sequence`: ranks that hold parts of the same rows. `engine`: ranks that share an engine, of size 1 until
    there is one. Gradients are summed over data x sequence, which is the world.
    """

    data: Axis
    sequence: Axis
    engine: Axis

    @classmethod
    def of(cls, world: World, *, sequence: int = 1) -> Mesh:
        """Data and sequence axes, the latter of `sequence` neighbours. Collective; size 1 makes no group.

        Raises:
            ValueError: `sequence` does not divide the world size.
        """
        along = neighbours(world, size=sequence)
        return cls(data=_strided(world, step=along.size), sequence=along, engine=Axis.alone(world))


def neighbours(world: World, *, size: int) -> Axis:
    """This rank and its `size` - 1 neighbours: world 8 with size 4 gives [0-3] and [4-7]. Collective.

    Raises:
        ValueError: `size` does not divide the world size.
    """
    if size < 1 or world.world_size % size:
        raise ValueError(f"group size {size} does not divide the world size {world.world_size}")
    return _mine(world, [range(start, start + size) for start in range(0, world.world_size, size)])


def _strided(world: World, *, step: int) -> Axis:
    """Every `step`-th rank: world 4 with step 2 gives [0, 2] and [1, 3]."""
    return _mine(world, [range(start, world.world_size, step) for start in range(step)])


def _mine(world: World, parts: Sequence[range]) -> Axis:
    """This rank's part of the world. Every rank makes the groups of all parts: torch wants it so."""
    mine = next(part for part in parts if world.rank in part)
    group = None
    if len(mine) == world.world_size:
        group = world.group
    elif len(mine) > 1 and world.group is not None:
        groups = [dist.new_group(list(part)) for part in parts]
        group = groups[parts.index(mine)]
    return Axis(ranks=tuple(mine), rank=mine.index(world.rank), group=group)
