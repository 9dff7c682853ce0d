"""GRPO's advantage is the standard score within the group. Numbers worked out by hand."""

import pytest
import torch

from lightrft.algorithms.grpo import grpo
from lightrft.algorithms.inputs import AdvantageInput


def advantages(rewards: list[float], groups: list[int], mask: list[list[float]] | None = None) -> torch.Tensor:
    shape = torch.tensor(mask) if mask else torch.ones(len(rewards), 1)
    return grpo(AdvantageInput(rewards=torch.tensor(rewards), group_ids=torch.tensor(groups), mask=shape)).advantages


def test_one_right_answer_of_four() -> None:
    # mean 1/4, squared deviations 9/16 + 3/16 = 3/4, over n - 1 = 3: variance 1/4, std 1/2
    got = advantages([1.0, 0.0, 0.0, 0.0], [7, 7, 7, 7])[:, 0]
    assert got.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)


def test_groups_of_unequal_size_in_any_order() -> None:
    # group 1: rewards 2, 0 (mean 1, std sqrt 2); group 0: rewards 3, 0, 0 (mean 1, std sqrt 3)
    got = advantages([3.0, 2.0, 0.0, 0.0, 0.0], [0, 1, 0, 1, 0])[:, 0]
    root2, root3 = 2**0.5, 3**0.5
    assert got.tolist() == pytest.approx([2 / root3, 1 / root2, -1 / root3, -1 / root2, -1 / root3], abs=1e-5)


def test_no_variance_gives_exactly_zero() -> None:
    assert advantages([0.1, 0.1, 0.1], [0, 0, 0]).abs().max() < 1e-9
    assert advantages([5.0], [3]).tolist() == [[0.0]]


def test_every_token_has_its_completion_s_advantage_and_padding_has_none() -> None:
    got = advantages([1.0, 0.0], [0, 0], [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    value = 0.5 / 0.5**0.5
    assert got[0].tolist() == pytest.approx([value, value, 0.0], abs=1e-5)
    assert got[1].tolist() == pytest.approx([-value, 0.0, 0.0], abs=1e-5)
    assert got.dtype == torch.float32
