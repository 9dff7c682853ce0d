"""Which ranks share an engine? Contiguous groups of the world."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from lightrft.distributed.world import World


@dataclass(frozen=True, kw_only=True)
class EngineGroup:
    """The ranks of one engine: world 8 with size 4 gives [0-3] and [4-7]. `group` is None where the world has no process group."""

    ranks: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup | None

    @property
    def is_first(self) -> bool:
        """Whether this process is the group's first rank."""
        return self.rank == 0


def contiguous_group(world: World, *, size: int) -> EngineGroup:
    """This rank's group of `size` neighbours. Collective over the world.

    Raises:
        ValueError: `size` does not divide the world size.
    """
    if size < 1 or world.world_size % size:
        raise ValueError(f"group size {size} does not divide the world size {world.world_size}")
    mine = None
    if world.group is not None:
        for start in range(0, world.world_size, size):
            group = dist.new_group(list(range(start, start + size)))
            if start <= world.rank < start + size:
                mine = group
    start = world.rank // size * size
    return EngineGroup(ranks=tuple(range(start, start + size)), rank=world.rank - start, group=mine)
