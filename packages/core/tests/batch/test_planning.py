"""Steps and micro-batches of a rollout: every sequence once a pass, work even over ranks, columns there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightrft.batch.micro_batch import packed
from lightrft.batch.planning import Batching, by_tokens, epochs
from lightrft.batch.stages import Sampled, Trainable
from lightrft.distributed.mesh import Mesh
from lightrft.distributed.world import World
from lightrft.testing.batches import batch_of
from lightrft.testing.spmd import run_spmd

CPU = torch.device("cpu")


def lengths_of(number: int, *, seed: int) -> list[int]:
    """Log-normal: most are short, a few are long."""
    drawn = torch.empty(number).log_normal_(3.5, 0.8, generator=torch.Generator().manual_seed(seed))
    return [int(n) + 2 for n in drawn]


def batch(lengths: list[int], **columns: Any) -> Trainable:
    return batch_of(Trainable, [([1], list(range(2, n + 1))) for n in lengths], **columns)


def test_packed_rows_by_hand() -> None:
    made = batch_of(Trainable, [([1, 2], [3, 4, 5]), ([6], []), ([7, 8, 9], [10])], advantages=[[1.0, 2.0, 3.0], [], [4.0]])
    micro = packed(made, torch.tensor([2, 1, 0]), columns=("advantages",), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[7, 8, 9, 10, 6, 1, 2, 3, 4, 5]]
    assert micro.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 0, 1, 2, 3, 4]], "positions begin again in each sequence"
    assert micro.inputs["cu_seq_lens_q"].tolist() == [0, 4, 5, 10] and micro.inputs["max_length_q"] == 5
    assert (micro.labels.tolist(), micro.at.tolist()) == ([10, 3, 4, 5], [2, 6, 7, 8])
    assert micro.rows("advantages").tolist() == [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]
    hole = made.loss_mask.clone()
    hole[3] = False
    assert packed(replace(made, loss_mask=hole), torch.tensor([0]), device=CPU).at.tolist() == [1, 3]
    nothing = packed(made, torch.zeros(0, dtype=torch.int64), device=CPU)
    assert nothing.inputs["cu_seq_lens_q"].tolist() == [0, 1] and nothing.inputs["input_ids"].shape == (1, 1) and not len(nothing.labels)


def test_rows_are_filled_up_to_the_budget_and_a_longer_sequence_is_alone() -> None:
    made = batch([30, 70, 120, 40, 60])
    parts = by_tokens(made, torch.arange(5), budget=100)
    assert [made.lengths[part].tolist() for part in parts] == [[120], [70, 30], [60, 40]]
    many = batch(lengths_of(400, seed=1))
    parts = by_tokens(many, torch.arange(400), budget=1024)
    filled = [int(many.lengths[part].sum()) for part in parts]
    assert sorted(torch.cat(parts).tolist()) == list(range(400)) and max(filled) <= 1024
    assert sum(filled) >= 0.95 * 1024 * len(parts), "at most 5 % of the rows' room is empty"
    assert by_tokens(many, torch.zeros(0, dtype=torch.int64), budget=1024) == []


def planned(batching: Batching, counts: list[int]) -> list[Any]:
    world = World.join(need_group=True)
    axis = Mesh.of(world).data
    lengths = lengths_of(counts[world.rank], seed=10 + world.rank)
    rows = batch(
        lengths, rewards=[1000.0 * world.rank + at for at in range(len(lengths))], trains=[at % 7 != 0 for at in range(len(lengths))]
    )
    found = []
    for epoch in epochs(rows, batching, axis=axis, seed=3):
        there = epoch.dealing.there(rows)
        column = there.on_tokens(there.rewards.repeat_interleave(there.num_sampled))
        back = epoch.dealing.home(column, there=there, batch=rows)
        own = rows.on_tokens(rows.rewards.repeat_interleave(rows.num_sampled))
        steps = [
            (
                there.rewards[step.index].tolist(),
                step.num_tokens,
                step.num_sequences,
                float(batching.costs(there.lengths[step.index]).sum()),
                [int(there.lengths[part].sum()) for part in batching.micro_batches(there, step.index)],
            )
            for step in epoch.steps
        ]
        found.append((steps, torch.equal(back, own), sorted(there.rewards.tolist())))
    return found


CASES = {
    "at home": Batching(train_batch_size=16, micro_batch_size=4, max_epochs=2),
    "balanced": Batching(train_batch_size=16, micro_batch_size=4, max_epochs=2, balance=True),
    "packed": Batching(train_batch_size=32, micro_batch_size=4, token_budget=512, balance=True, attention_length=100.0),
}


@pytest.mark.parametrize("name", CASES)
def test_every_sequence_that_trains_is_in_one_step_of_each_pass(name: str) -> None:
    counts = [32, 30]
    ranks = run_spmd(planned, 2, CASES[name], counts, timeout_s=120)
    expected = sorted(1000.0 * rank + at for rank, count in enumerate(counts) for at in range(count) if at % 7)
    for epoch in range(CASES[name].max_epochs):
        (first, home, _), (second, also, _) = (rank[epoch] for rank in ranks)
        assert home and also, "what is found of a sequence comes back to its own tokens"
        assert len(first) == len(second) and sorted(row for steps in (first, second) for step in steps for row in step[0]) == expected
        for mine, theirs in zip(first, second, strict=True):
            assert mine[1:3] == theirs[1:3] and mine[2] == len(mine[0]) + len(theirs[0]), "counts are those of all ranks"
    if CASES[name].max_epochs > 1:
        assert ranks[0][0][0] != ranks[0][1][0], "each pass is shuffled anew"


def test_dealt_steps_cost_about_the_same_on_every_rank() -> None:
    for name, bound in (("balanced", 0.05), ("packed", 0.05)):
        batching = replace(CASES[name], train_batch_size=64, max_epochs=1)
        ranks = run_spmd(planned, 4, batching, [64, 64, 64, 64], timeout_s=120)
        for steps in zip(*(rank[0][0] for rank in ranks), strict=True):
            costs = [step[3] for step in steps]
            assert max(costs) - min(costs) <= bound * max(costs), name


def test_the_plan_depends_on_the_batch_and_the_seed_only() -> None:
    rows = batch(lengths_of(32, seed=5))
    axis = Mesh.of(World.alone()).data
    batching = CASES["balanced"]
    one, same, other = (epochs(rows, batching, axis=axis, seed=seed)[0].steps for seed in (1, 1, 2))
    assert all(torch.equal(a.index, b.index) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a.index, b.index) for a, b in zip(one, other, strict=True))
    assert isinstance(rows, Sampled)
