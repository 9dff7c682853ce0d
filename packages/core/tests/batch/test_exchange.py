"""Sequences that change their rank arrive whole, bit by bit, in a stated order; metrics of all ranks take one message."""

from __future__ import annotations

import struct
from typing import Any

import torch

from lightrft.batch.exchange import exchange, gathered
from lightrft.batch.stages import Trainable
from lightrft.distributed.lockstep import lockstep
from lightrft.distributed.world import World
from lightrft.observe.metrics import StepMetrics
from lightrft.testing.batches import batch_of, rows_of
from lightrft.testing.collectives import CountedCollectives
from lightrft.testing.spmd import run_spmd
from lightrft.types import Sample

NAN = struct.unpack("<f", struct.pack("<I", 0x7FC00123))[0]
"""A NaN whose bits say more than that it is one."""


def mine(rank: int, number: int) -> Trainable:
    """Sequences of 1 to 3 sampled tokens, all of whose numbers say whose they are."""
    pairs = [([rank], [100 * rank + at] * (1 + at % 3)) for at in range(number)]
    return batch_of(
        Trainable, pairs, group_ids=[2**40 + rank] * number, rewards=[rank + at / 3 for at in range(number)],
        samples=[Sample(prompt=f"{rank}/{at}", completion="") for at in range(number)],
        advantages=[[NAN, -0.0, 1e-42][: 1 + at % 3] for at in range(number)], trains=[at % 2 == 0 for at in range(number)],
    )  # fmt: skip


def said(batch: Trainable) -> list[Any]:
    return [
        (
            row.sample.prompt, row.prompt_ids, row.completion_ids, int(row.group_ids), float(row.rewards), bool(row.trains),
            row.advantages.view(torch.int32).tolist(),
        )
        for row in rows_of(batch)
    ]  # fmt: skip


def exchanged() -> tuple[list[Any], list[Any], int]:
    """Rank r has r sequences and sends number k to rank (r + k) modulo the world's size."""
    world = World.join(need_group=True)
    own = mine(world.rank, world.rank)
    targets = (torch.arange(world.rank) + world.rank) % world.world_size
    with CountedCollectives() as counts:
        there = exchange(own, targets, group=world.group)
    return said(own), said(there), sum(n for name, n in counts.calls.items() if "alltoall" in name)


def test_every_sequence_arrives_whole_where_it_should() -> None:
    ranks = run_spmd(exchanged, 4, timeout_s=120)
    sent = [own for own, *_ in ranks]
    for rank, (_, there, messages) in enumerate(ranks):
        coming = [(source, row) for source, own in enumerate(sent) for at, row in enumerate(own) if (source + at) % 4 == rank]
        assert there == [row for source, row in sorted(coming, key=lambda one: (one[0] != rank, one[0]))]
        assert messages == 3, "sizes, sequences, tokens: whatever the number of columns"


def everything() -> list[Any]:
    world = World.join(need_group=True)
    return said(gathered(mine(world.rank, 2 - world.rank), group=world.group))


def test_all_sequences_on_every_rank() -> None:
    first, second = run_spmd(everything, 2, timeout_s=120)
    assert first == second == [*said(mine(0, 2)), *said(mine(1, 1))]


def measured() -> tuple[dict[str, float], int, list[int]]:
    world = World.join(need_group=True)
    metrics = StepMetrics()
    for reward in [1.0, 2.0, 4.0][: 1 + world.rank]:  # parts of one name add up
        metrics.mean("reward", reward, 1.0)
    metrics.add("span", {"n": 1.0}, lambda found: {"span": found["most"] / found["n"]}, largest={"most": 10.0 * world.rank})
    metrics.mean("nothing", 0.0, 0.0)
    with CountedCollectives() as counts:
        found = metrics.reduce(world.group)
    return found, counts.calls.total(), lockstep([1] * world.rank, empty=0, world=world)


def test_metrics_of_all_ranks_by_hand_in_one_message() -> None:
    for rank, (found, messages, passes) in enumerate(run_spmd(measured, 3, timeout_s=120)):
        assert found == {"reward": (1.0 + 3.0 + 7.0) / 6, "span": 20.0 / 3, "nothing": 0.0}
        assert messages == 1 and passes == [1] * rank + [0] * (2 - rank)


def apart() -> str:
    world = World.join(need_group=True)
    metrics = StepMetrics()
    metrics.mean(f"rank {world.rank}", 1.0, 1.0)
    try:
        metrics.reduce(world.group)
    except AssertionError as error:
        return str(error)
    return ""


def test_ranks_that_measure_different_things_are_told() -> None:
    assert run_spmd(apart, 2, timeout_s=120) == ["ranks have collected different metrics in one step"] * 2
