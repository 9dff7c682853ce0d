"""Which ranks form a group, and how does a process join the world?"""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from lightrft.distributed.groups import contiguous_group
from lightrft.distributed.memory import memory_report
from lightrft.distributed.world import World
from lightrft.testing import run_spmd


def world_of(rank: int, world_size: int) -> World:
    return World(rank=rank, world_size=world_size, local_rank=rank, device=torch.device("cpu"), group=None)


def test_eight_ranks_in_groups_of_four_as_in_the_guide() -> None:
    groups = [contiguous_group(world_of(rank, 8), size=4) for rank in range(8)]
    assert [g.ranks for g in groups] == [(0, 1, 2, 3)] * 4 + [(4, 5, 6, 7)] * 4
    assert [g.rank for g in groups] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [g.is_first for g in groups] == [True, False, False, False] * 2


@pytest.mark.parametrize(("size", "world_size"), [(3, 8), (0, 8), (16, 8)])
def test_a_size_that_does_not_divide_the_world_is_refused(size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"group size {size} does not divide the world size {world_size}"):
        contiguous_group(world_of(0, world_size), size=size)


def group_of_two() -> tuple[tuple[int, ...], float]:
    world = World.join(need_group=True)
    group = contiguous_group(world, size=2)
    total = torch.tensor(float(world.rank))
    dist.all_reduce(total, group=group.group)
    return group.ranks, total.item()


def test_the_groups_collectives_stay_inside_the_group() -> None:
    assert run_spmd(group_of_two, 4) == [((0, 1), 1.0), ((0, 1), 1.0), ((2, 3), 5.0), ((2, 3), 5.0)]


def joined(need_group: bool) -> tuple[int, int, int, bool]:
    world = World.join(need_group=need_group)
    if dist.is_initialized():
        dist.barrier()  # a rank that ends before another has connected to it would be what fails
    again = World.join(need_group=need_group)
    assert again == world
    world.leave()
    world.leave()
    return world.rank, world.world_size, world.local_rank, world.group is not None


def test_joining_reads_torchruns_variables_and_is_idempotent() -> None:
    assert run_spmd(joined, 2, False) == [(0, 2, 0, True), (1, 2, 1, True)]
    assert run_spmd(joined, 1, False) == [(0, 1, 0, False)]
    assert run_spmd(joined, 1, True) == [(0, 1, 0, True)]


def joined_by_hand() -> tuple[int, bool]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    world = World.join(need_group=True)
    return world.world_size, dist.is_initialized()


def test_one_process_without_torchrun_gets_a_group_where_one_is_needed() -> None:
    assert run_spmd(joined_by_hand, 1) == [(1, True)]


def test_memory_report_is_in_gib() -> None:
    report = memory_report(torch.device("cpu"))
    assert report.keys() == {"host_peak_gib"}
    assert 0.05 < report["host_peak_gib"] < 50
