"""The same number of passes on every rank: sharded models need every rank in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lightrft.distributed.collectives import all_reduce
from lightrft.distributed.world import World

T = TypeVar("T")


def lockstep(items: Sequence[T], *, empty: T, world: World) -> list[T]:
    """This rank's items, filled up with `empty` to the largest number of any rank. Collective."""
    most: int = all_reduce(len(items), op="max", group=world.group, device=world.device)
    return [*items, *[empty] * (most - len(items))]
