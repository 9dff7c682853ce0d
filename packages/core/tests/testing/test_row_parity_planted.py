"""What is planted in packed rows is seen against padded ones: documents that change places, a micro-batch that counts twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightrft.batch import planning
from lightrft.batch.micro_batch import MicroBatch
from lightrft.config.load import make_config
from lightrft.strategy.factory import get_strategy
from lightrft.testing import row_parity
from lightrft.testing.parity import BOUND, Measured, distance

honest = planning.packed


def of(**settings: Any) -> Measured:
    return row_parity.measured(get_strategy(make_config({"strategy": "single", "micro_train_batch_size": 3, **settings})), "qwen3")


@pytest.fixture(autouse=True, scope="module")
def one_step() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_parity, "STEPS", 1)
        yield


@pytest.fixture(scope="module")
def padded(one_step: None) -> Measured:
    return of()


def swapped(batch: Any, index: torch.Tensor, **more: Any) -> MicroBatch:
    """The row's documents in another order than the columns that are taken of it."""
    return honest(batch, index.flip(0), **more)


def one_token_late(batch: Any, index: torch.Tensor, **more: Any) -> MicroBatch:
    """Each label at the place of the token itself, as where labels are not shifted."""
    micro = honest(batch, index, **more)
    return replace(micro, at=micro.at + 1)


def test_without_a_fault_packed_rows_are_padded_ones(padded: Measured) -> None:
    assert distance(of(packing_samples=True, max_tokens_per_micro_batch=48), padded).within(BOUND)


@pytest.mark.parametrize("fault", [swapped, one_token_late])
def test_a_fault_of_a_row_is_seen(fault: Callable[..., MicroBatch], padded: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "packed", fault)
    assert not distance(of(packing_samples=True, max_tokens_per_micro_batch=48), padded).within(BOUND)


def test_a_micro_batch_that_counts_twice_is_seen(padded: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = planning.Batching.micro_batches
    monkeypatch.setattr(planning.Batching, "micro_batches", lambda self, batch, index: [*(all := parts(self, batch, index)), all[0]])
    assert not distance(of(packing_samples=True, max_tokens_per_micro_batch=48), padded).within(BOUND)
