"""Columns of a rollout: selecting and joining sequences, the grid of sampled tokens, holes in the mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightrft.batch.collect import answers_of, sequences_of
from lightrft.batch.grid import Grid
from lightrft.batch.stages import Rewarded, Sampled, Scored, Trainable, columns_of, joined
from lightrft.testing.batches import batch_of, rows_of
from lightrft.types import Completion, RequestOutput, Sample

PAIRS = [([1, 2], [3, 4, 5]), ([6], []), ([7, 8, 9], [10])]


def trainable() -> Trainable:
    return batch_of(
        Trainable, PAIRS, group_ids=[4, 4, 9], rewards=[0.5, 1.5, 2.5], advantages=[[1.0, 2.0, 3.0], [], [4.0]],
        samples=[Sample(prompt=str(at), completion="") for at in range(3)],
    )  # fmt: skip


def test_sequences_lie_one_after_the_other() -> None:
    batch = trainable()
    assert len(batch) == 3 and batch.offsets.tolist() == [0, 5, 6, 10]
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.loss_mask.int().tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 1]
    assert batch.lengths.tolist() == [5, 1, 4] and batch.num_sampled.tolist() == [3, 0, 1]
    assert batch.advantages.tolist() == [0, 0, 1, 2, 3, 0, 0, 0, 0, 4]


@pytest.mark.parametrize("order", [[2, 0], [1], [], [0, 0, 2, 1]])
def test_selected_sequences_keep_every_column(order: list[int]) -> None:
    batch = trainable()
    chosen = batch.select(torch.tensor(order, dtype=torch.int64))
    whole = rows_of(batch)
    for row, at in zip(rows_of(chosen), order, strict=True):
        assert (row.prompt_ids, row.completion_ids) == (whole[at].prompt_ids, whole[at].completion_ids)
        assert row.advantages.tolist() == whole[at].advantages.tolist() and row.sample is whole[at].sample
        assert (float(row.rewards), int(row.group_ids)) == (float(whole[at].rewards), int(whole[at].group_ids))


def test_joined_parts_are_the_whole() -> None:
    batch = trainable()
    parts = [batch.select(torch.tensor(index, dtype=torch.int64)) for index in ([0], [], [1, 2])]
    whole = joined(parts)
    for name in ("offsets", *columns_of(Trainable)):
        mine, theirs = getattr(whole, name), getattr(batch, name)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs, name


def test_each_stage_knows_more_than_the_one_before() -> None:
    stages = [Sampled, Rewarded, Scored, Trainable]
    for before, after in zip(stages, stages[1:], strict=False):
        assert columns_of(before).items() < columns_of(after).items()
    with pytest.raises(AttributeError):
        trainable().rewards = torch.zeros(3)  # type: ignore[misc]
    with pytest.raises(TypeError, match="rewards"):
        batch_of(Sampled, PAIRS).as_stage(Rewarded)


def test_a_hole_in_the_mask_is_no_token_of_the_policy() -> None:
    """A tool's answer inside a sequence: its tokens are neither counted nor given a value."""
    batch = trainable()
    mask = batch.loss_mask.clone()
    mask[3] = False
    holed = replace(batch, loss_mask=mask)
    assert holed.num_sampled.tolist() == [2, 0, 1]
    assert [values.tolist() for values in holed.by_sequence(holed.advantages)] == [[1.0, 3.0], [], [4.0]]
    assert holed.grid.spread(holed.sampled(holed.advantages)).tolist() == [[1.0, 3.0], [0.0, 0.0], [4.0, 0.0]]
    assert holed.on_tokens(torch.tensor([7.0, 8.0, 9.0])).tolist() == [0, 0, 7, 0, 8, 0, 0, 0, 0, 9]


def test_a_grid_goes_there_and_back() -> None:
    grid = Grid.of(torch.tensor([2, 0, 3]))
    values = torch.arange(5.0, requires_grad=True)
    spread = grid.spread(values)
    assert spread.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 3.0, 4.0]]
    assert grid.flat(spread).tolist() == values.tolist() and grid.mask().sum(1).tolist() == [2, 0, 3]
    (spread * spread).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert Grid.of(torch.zeros(0, dtype=torch.int64)).shape == (0, 0)


def test_answers_of_an_engine() -> None:
    outputs = [
        RequestOutput(id=7, prompt_token_ids=(1,), completions=(
            Completion(token_ids=(2, 3), finish_reason="length", weight_version=4, logprobs=[-0.5, -0.25]),
            Completion(token_ids=(4,), finish_reason="stop", weight_version=4),
        )),
    ]  # fmt: skip
    batch = answers_of(outputs)
    assert batch.group_ids.tolist() == [7, 7] and batch.truncated.tolist() == [True, False]
    assert batch.engine_logprobs.tolist() == [0.0, -0.5, -0.25, 0.0, 0.0] and batch.has_logprobs.tolist() == [True, False]
    assert batch.versions.tolist() == [4] * 5 and batch.token_ids.dtype == torch.int32
    assert len(answers_of([])) == 0
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        sequences_of([((), outputs[0].completions[0])], group_ids=[0])
