"""Padded micro-batches: which token each label is, and where the logits are that predict it."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightrft.batch.micro_batch import packed, padded
from lightrft.batch.stages import Trainable
from lightrft.testing.batches import batch_of

CPU = torch.device("cpu")
PAIRS = [([1, 2], [3, 4, 5]), ([6], []), ([7, 8, 9], [10])]


def batch() -> Trainable:
    return batch_of(Trainable, PAIRS, advantages=[[1.0, 2.0, 3.0], [], [4.0]], old_logprobs=[[-1.0, -2.0, -3.0], [], [-4.0]])


def test_rows_labels_and_columns_by_hand() -> None:
    micro = padded(batch(), torch.tensor([2, 0]), columns=("advantages", "old_logprobs"), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[7, 8, 9, 10, 0], [1, 2, 3, 4, 5]]
    assert micro.labels.tolist() == [10, 3, 4, 5]
    assert micro.at.tolist() == [2, 6, 7, 8], "a token is predicted from the place before it"
    assert micro.columns["advantages"].tolist() == [4.0, 1.0, 2.0, 3.0]
    assert micro.rows("old_logprobs").tolist() == [[-4.0, 0.0, 0.0], [-1.0, -2.0, -3.0]]
    assert micro.num_tokens == 10


def test_a_hole_trains_nothing_and_is_still_read() -> None:
    made = batch()
    mask = made.loss_mask.clone()
    mask[3] = False
    micro = padded(replace(made, loss_mask=mask), torch.tensor([0]), columns=("advantages",), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert (micro.labels.tolist(), micro.at.tolist()) == ([3, 5], [1, 3])
    assert micro.rows("advantages").tolist() == [[1.0, 3.0]]


def test_no_sequences_are_a_row_without_labels() -> None:
    micro = padded(batch(), torch.zeros(0, dtype=torch.int64), columns=("advantages",), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[0]] and len(micro.labels) == len(micro.at) == 0
    assert micro.rows("advantages").shape == (0, 0)


def test_a_sequence_without_sampled_tokens_has_a_row_and_no_label() -> None:
    micro = padded(batch(), torch.tensor([1, 2]), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[6, 0, 0, 0], [7, 8, 9, 10]]
    assert (micro.labels.tolist(), micro.at.tolist(), micro.grid.shape) == ([10], [6], (2, 1))


def of_two_contexts() -> Trainable:
    """The first sequence: [1, 2] and 3 that was sampled; then a context of its own, [4] and 5."""
    made = batch()
    mask, begins = made.loss_mask.clone(), made.begins.clone()
    mask[3], begins[3] = False, True
    return replace(made, loss_mask=mask, begins=begins)


def test_a_context_in_the_middle_of_a_sequence_is_a_padded_row() -> None:
    micro = padded(of_two_contexts(), torch.tensor([2, 0]), columns=("advantages",), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[7, 8, 9, 10], [1, 2, 3, 0], [4, 5, 0, 0]]
    assert (micro.labels.tolist(), micro.at.tolist()) == ([10, 3, 5], [2, 5, 8])
    assert micro.rows("advantages").tolist() == [[4.0, 0.0], [1.0, 3.0]], "one row of the loss for the sequence"


def test_a_context_in_the_middle_of_a_sequence_is_a_segment_of_a_packed_row() -> None:
    micro = packed(of_two_contexts(), torch.tensor([0, 2]), columns=("advantages",), device=CPU)
    assert micro.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 7, 8, 9, 10]]
    assert micro.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert micro.inputs["cu_seq_lens_q"].tolist() == [0, 3, 5, 9]
    assert (micro.labels.tolist(), micro.at.tolist()) == ([3, 5, 10], [1, 3, 7])
    assert micro.rows("advantages").tolist() == [[1.0, 3.0], [4.0, 0.0]]
