"""The ranks of each axis, and how a process joins the world."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from lightrft.distributed.collectives import all_reduce
from lightrft.distributed.memory import memory_report
from lightrft.distributed.mesh import Mesh, neighbours
from lightrft.distributed.world import World
from lightrft.testing import run_spmd


def world_of(rank: int, world_size: int) -> World:
    return World(rank=rank, world_size=world_size, local_rank=rank, device=torch.device("cpu"), group=None)


def test_eight_ranks_in_groups_of_four_as_in_the_guide() -> None:
    groups = [neighbours(world_of(rank, 8), size=4) for rank in range(8)]
    assert [g.ranks for g in groups] == [(0, 1, 2, 3)] * 4 + [(4, 5, 6, 7)] * 4
    assert [g.rank for g in groups] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [g.is_first for g in groups] == [True, False, False, False] * 2


@pytest.mark.parametrize(("size", "world_size"), [(3, 8), (0, 8), (16, 8)])
def test_a_size_that_does_not_divide_the_world_is_refused(size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"group size {size} does not divide the world size {world_size}"):
        neighbours(world_of(0, world_size), size=size)


def sums_along(sequence: int) -> tuple[list[tuple[int, ...]], list[float]]:
    world = World.join(need_group=True)
    mesh = Mesh.of(world, sequence=sequence)
    totals = []
    for axis in (mesh.data, mesh.sequence, mesh.engine):
        assert axis.ranks[axis.rank] == world.rank and axis.size == len(axis.ranks) and axis.is_first == (axis.rank == 0)
        totals.append(all_reduce(float(world.rank), op="sum", group=axis.group, device=world.device))
    return [mesh.data.ranks, mesh.sequence.ranks], totals


def test_collectives_stay_inside_an_axis() -> None:
    found = run_spmd(sums_along, 4, 2)
    assert [ranks for ranks, _ in found] == [[(0, 2), (0, 1)], [(1, 3), (0, 1)], [(0, 2), (2, 3)], [(1, 3), (2, 3)]]
    assert [totals for _, totals in found] == [[2.0, 1.0, 0.0], [4.0, 1.0, 1.0], [2.0, 5.0, 2.0], [4.0, 5.0, 3.0]]


def test_a_sequence_may_take_all_ranks() -> None:
    found = run_spmd(sums_along, 2, 2)
    assert [ranks for ranks, _ in found] == [[(0,), (0, 1)], [(1,), (0, 1)]]
    assert [totals for _, totals in found] == [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]


def groups_made() -> tuple[int, bool]:
    world = World.join(need_group=True)
    before = dist.get_pg_count()
    mesh = Mesh.of(world)
    dist.barrier()  # as in `joined`
    return dist.get_pg_count() - before, mesh.data.group is world.group and mesh.data.rank == world.rank


def test_without_sequence_groups_the_data_axis_is_the_world_itself() -> None:
    assert run_spmd(groups_made, 2) == [(0, True)] * 2


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
