"""The ranks deal out the rows without overlap, whatever their number; a resumed sampler goes on where it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightrft.data.sampler import PromptSampler
from lightrft.errors import CheckpointError


def world(size: int, *, num_rows: int = 10, batch_size: int = 4, seed: int = 7) -> list[PromptSampler]:
    return [PromptSampler(num_rows, batch_size=batch_size, rank=rank, world_size=size, seed=seed) for rank in range(size)]


def steps(samplers: list[PromptSampler], count: int) -> list[list[int]]:
    """The union over ranks, in rank order, of each of the next steps."""
    return [[row for sampler in samplers for row in sampler.next_batch()] for _ in range(count)]


def test_every_row_once_per_epoch_in_another_order_each_time() -> None:
    stream = [row for step in steps(world(1), 15) for row in step]
    epochs = [stream[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6 and list(range(10)) not in epochs


@pytest.mark.parametrize("size", [2, 4])
def test_what_a_step_takes_does_not_depend_on_the_world_size(size: int) -> None:
    assert steps(world(size), 12) == steps(world(1), 12)


def test_ranks_are_disjoint_within_an_epoch() -> None:
    samplers = world(4, num_rows=16, batch_size=8)
    taken: list[list[int]] = [[] for _ in samplers]
    for _ in range(2):
        for rank, sampler in enumerate(samplers):
            taken[rank] += sampler.next_batch()
    assert [len(rows) for rows in taken] == [4, 4, 4, 4]
    assert sorted(row for rows in taken for row in rows) == list(range(16))


def test_the_seed_and_nothing_else_decides() -> None:
    assert steps(world(1), 5) == steps(world(1), 5)
    assert steps(world(1), 5) != steps(world(1, seed=8), 5)
    # The batch size only cuts the stream: the permutation of an epoch is the same.
    by_2, by_4 = steps(world(1, batch_size=2), 20), steps(world(1, batch_size=4), 10)
    assert [row for step in by_2 for row in step] == [row for step in by_4 for row in step]


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert steps(world(1), 3) == [[8, 2, 6, 3], [4, 7, 9, 1], [0, 5, 9, 6]]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (2, 4), (4, 1)])
def test_resume_in_mid_epoch_at_any_world_size(before: int, after: int) -> None:
    whole = steps(world(1), 12)
    first = world(before)
    assert steps(first, 4) == whole[:4]  # 16 rows of 10: in the middle of the second epoch
    states = [sampler.state_dict() for sampler in first]
    assert all(state == states[0] for state in states)
    saved = json.loads(json.dumps(states[0]))
    second = world(after)
    for sampler in second:
        sampler.next_batch()  # what it did before does not matter
        sampler.load_state_dict(saved)
    assert steps(second, 8) == whole[4:]


def test_progress() -> None:
    (sampler,) = world(1)
    assert sampler.epoch == 0 and sampler.steps_per_epoch == 3
    sampler.next_batch()
    assert sampler.epoch == pytest.approx(0.4)
    for size in (1, 2, 5, 10, 11):
        assert PromptSampler(10, batch_size=size, rank=0, world_size=1, seed=0).steps_per_epoch == {1: 10, 2: 5, 5: 2, 10: 1, 11: 1}[size]


def test_a_batch_larger_than_the_data_spans_epochs() -> None:
    (step,) = steps(world(2, num_rows=3, batch_size=8), 1)
    assert sorted(step[:3]) == sorted(step[3:6]) == [0, 1, 2] and len(step) == 8
    assert steps(world(2, num_rows=3, batch_size=8), 4) == steps(world(1, num_rows=3, batch_size=8), 4)


def test_old_orders_are_forgotten() -> None:
    (sampler,) = world(1)
    steps([sampler], 100)
    assert len(sampler._orders) <= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_rows": 11}, "the checkpoint's sampler has num_rows=11, this run has num_rows=10: give the data that the run began with"),
        ({"seed": 8}, "the checkpoint's sampler has seed=8, this run has seed=7: give the seed that the run began with"),
        ({"position": None}, "'position' is None, expected an int"),
    ],
)
def test_a_state_of_another_run_is_refused_and_changes_nothing(change: dict[str, Any], expected: str) -> None:
    (sampler,) = world(1)
    sampler.next_batch()
    before = sampler.state_dict()
    with pytest.raises(CheckpointError) as caught:
        sampler.load_state_dict(before | change)
    assert expected in str(caught.value) and sampler.state_dict() == before


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="num_rows=0"):
        PromptSampler(0, batch_size=1, rank=0, world_size=1, seed=0)
    for size in (0, 3):
        with pytest.raises(ValueError, match=f"batch_size={size} is no positive multiple of world_size=2"):
            PromptSampler(5, batch_size=size, rank=0, world_size=2, seed=0)
    with pytest.raises(ValueError, match=r"rank=2 is not in \[0, 1\]"):
        PromptSampler(5, batch_size=2, rank=2, world_size=2, seed=0)
