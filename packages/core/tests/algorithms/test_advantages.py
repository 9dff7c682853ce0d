"""Each advantage is what its paper says. Numbers worked out by hand; GRPO's are in test_grpo.py."""

import math
from collections.abc import Callable

import pytest
import torch

from lightrft.algorithms.dr_grpo import dr_grpo
from lightrft.algorithms.gae import gae
from lightrft.algorithms.grpo import grpo
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.opo import opo
from lightrft.algorithms.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from lightrft.algorithms.remax import remax
from lightrft.algorithms.rloo import rloo
from lightrft.algorithms.running_moments import RunningMoments
from lightrft.algorithms.whiten import moment_sums, whitened

Estimator = Callable[[AdvantageInput], Advantages]

OUTCOME = [grpo, dr_grpo, rloo, opo]

# Two prompts, their completions mixed: group 7 has three (rewards 3, 0, 0), group 2 has two (1, 2); lengths 1, 2, 3, 1, 3.
REWARDS = [3.0, 1.0, 0.0, 2.0, 0.0]
GROUPS = [7, 2, 7, 2, 7]
LENGTHS = [1, 2, 3, 1, 3]


def batch(rewards: list[float] = REWARDS, groups: list[int] = GROUPS, lengths: list[int] = LENGTHS, **more: object) -> AdvantageInput:
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).float()
    return AdvantageInput(rewards=torch.tensor(rewards), group_ids=torch.tensor(groups), mask=mask, **more)  # type: ignore[arg-type]


def first_tokens(found: Advantages) -> list[float]:
    return found.advantages[:, 0].tolist()


def test_dr_grpo() -> None:
    # means: group 7 (3 + 0 + 0) / 3 = 1, group 2 (1 + 2) / 2 = 1.5
    assert first_tokens(dr_grpo(batch())) == pytest.approx([2.0, -0.5, -1.0, 0.5, -1.0])


def test_rloo() -> None:
    # others' means: of the 3 (0 + 0) / 2 = 0, of each 0 (3 + 0) / 2 = 1.5; of the 1: 2, of the 2: 1
    assert first_tokens(rloo(batch())) == pytest.approx([3.0, -1.0, -1.5, 1.0, -1.5])


def test_opo() -> None:
    # group 7: (1 * 3 + 3 * 0 + 3 * 0) / 7 = 3/7; group 2: (2 * 1 + 1 * 2) / 3 = 4/3
    assert first_tokens(opo(batch())) == pytest.approx([3 - 3 / 7, 1 - 4 / 3, -3 / 7, 2 - 4 / 3, -3 / 7])


def test_remax() -> None:
    found = remax(batch(baselines=torch.tensor([1.0, 1.0, 1.0, 0.5, 1.0])))
    assert first_tokens(found) == pytest.approx([2.0, 0.0, -1.0, 1.5, -1.0])
    with pytest.raises(ValueError, match="baselines"):
        remax(batch())


@pytest.mark.parametrize("estimator", OUTCOME)
def test_every_token_has_its_completion_s_advantage_and_padding_has_none(estimator: Estimator) -> None:
    found = estimator(batch()).advantages
    assert found.dtype == torch.float32
    for row, length in zip(found, LENGTHS, strict=True):
        assert row[:length].tolist() == [float(row[0])] * length
        assert row[length:].tolist() == [0.0] * (3 - length)


@pytest.mark.parametrize("estimator", [*OUTCOME, reinforce_pp_baseline])
def test_a_group_of_one_and_one_of_equal_rewards_teach_nothing(estimator: Estimator) -> None:
    found = estimator(batch([5.0, 0.3, 0.3, 0.3], [9, 1, 1, 1], [2, 1, 2, 3])).advantages
    assert found.abs().max() < 1e-7


@pytest.mark.parametrize("estimator", OUTCOME)
def test_the_order_of_rows_and_the_names_of_groups_do_not_count(estimator: Estimator) -> None:
    order = [4, 2, 0, 3, 1]
    moved = batch([REWARDS[i] for i in order], [{7: -1, 2: 100}[GROUPS[i]] for i in order], [LENGTHS[i] for i in order])
    expected = estimator(batch()).advantages[order]
    torch.testing.assert_close(estimator(moved).advantages, expected, rtol=0, atol=1e-6)


def test_reinforce_pp_discounts_from_the_last_token() -> None:
    # rewards 2 and -1 on last tokens of completions of 3 and 1 tokens; gamma 1/2
    found = reinforce_pp(batch([2.0, -1.0], [0, 0], [3, 1], gamma=0.5))
    assert found.advantages.tolist() == [[0.5, 1.0, 2.0], [-1.0, 0.0, 0.0]]
    assert found.whiten


def test_reinforce_pp_adds_up_token_rewards() -> None:
    token_rewards = torch.tensor([[-0.5, -0.25, 2.0], [-1.0, 0.0, 0.0]])
    found = reinforce_pp(batch([1.25, -1.0], [0, 1], [3, 1], token_rewards=token_rewards))
    assert found.advantages.tolist() == [[1.25, 1.75, 2.0], [-1.0, 0.0, 0.0]]


def test_reinforce_pp_baseline_takes_the_group_s_mean_off_the_last_reward() -> None:
    # group mean (2 - 1) / 2 = 0.5: last rewards 1.5 and -1.5
    found = reinforce_pp_baseline(batch([2.0, -1.0], [4, 4], [3, 1], gamma=0.5))
    assert found.advantages.tolist() == [[0.375, 0.75, 1.5], [-1.5, 0.0, 0.0]]
    assert found.whiten


def test_gae_by_hand() -> None:
    # one completion of three tokens, reward 1 at its end; values 0.5, 0.25, 0.75; gamma 0.9, lambda 0.5
    # delta_2 = 1 - 0.75 = 0.25; delta_1 = 0.9 * 0.75 - 0.25 = 0.425; delta_0 = 0.9 * 0.25 - 0.5 = -0.275
    # A_2 = 0.25; A_1 = 0.425 + 0.45 * 0.25 = 0.5375; A_0 = -0.275 + 0.45 * 0.5375 = -0.033125
    # a second one of one token, value 2, reward -1: A = -3, padding untouched by its garbage values
    values = torch.tensor([[0.5, 0.25, 0.75], [2.0, 99.0, 99.0]])
    found = gae(batch([1.0, -1.0], [0, 1], [3, 1], values=values, gamma=0.9, lambd=0.5))
    assert found.advantages[0].tolist() == pytest.approx([-0.033125, 0.5375, 0.25])
    assert found.advantages[1].tolist() == [-3.0, 0.0, 0.0]
    assert found.returns is not None and found.whiten
    assert found.returns[0].tolist() == pytest.approx([0.466875, 0.7875, 1.0])
    assert found.returns[1].tolist() == [-1.0, 0.0, 0.0]


def test_gae_with_lambda_1_is_the_return_minus_the_value_and_with_lambda_0_the_td_error() -> None:
    values = torch.tensor([[0.5, 0.25, 0.75]])
    rewards = torch.tensor([[0.1, -0.2, 1.0]])
    monte_carlo = gae(batch([0.9], [0], [3], values=values, token_rewards=rewards))
    assert monte_carlo.advantages[0].tolist() == pytest.approx([0.9 - 0.5, 0.8 - 0.25, 1.0 - 0.75])
    assert monte_carlo.returns is not None and monte_carlo.returns[0].tolist() == pytest.approx([0.9, 0.8, 1.0])
    one_step = gae(batch([0.9], [0], [3], values=values, token_rewards=rewards, lambd=0.0))
    assert one_step.advantages[0].tolist() == pytest.approx([0.1 + 0.25 - 0.5, -0.2 + 0.75 - 0.25, 1.0 - 0.75])


def test_gae_steps_over_masked_tokens() -> None:
    mask = torch.tensor([[1.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 77.0, 0.75]])
    found = gae(AdvantageInput(rewards=torch.tensor([1.0]), group_ids=torch.tensor([0]), mask=mask, values=values, lambd=0.5))
    # delta_2 = 0.25; delta_0 = 0.75 - 0.5 = 0.25, A_0 = 0.25 + 0.5 * 0.25
    assert found.advantages[0].tolist() == pytest.approx([0.375, 0.0, 0.25])


def test_gae_without_a_critic_says_so() -> None:
    with pytest.raises(ValueError, match="needs values"):
        gae(batch())


def test_whitening_by_hand_and_over_two_ranks() -> None:
    # 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, over 3
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 50.0], [6.0, 50.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    std = math.sqrt(14 / 3)
    expected = [[-2 / std, -1 / std], [0.0, 0.0], [3 / std, 0.0]]
    whole = whitened(values, mask, sums=moment_sums(values, mask))
    torch.testing.assert_close(whole, torch.tensor(expected))
    sums = moment_sums(values[:1], mask[:1]) + moment_sums(values[1:], mask[1:])
    torch.testing.assert_close(whitened(values[1:], mask[1:], sums=sums), torch.tensor(expected[1:]))
    assert whitened(values[:0], mask[:0], sums=moment_sums(values[:0], mask[:0])).shape == (0, 2)
    flat = torch.full((2, 2), 0.7)
    assert whitened(flat, torch.ones(2, 2), sums=moment_sums(flat, torch.ones(2, 2))).abs().max() < 1e-3


def test_running_moments_are_those_of_all_values_and_go_through_a_checkpoint() -> None:
    moments = RunningMoments()
    for part in ([1.0, 2.0], [6.0], [3.0]):
        mean = sum(part) / len(part)
        moments.update(count=len(part), mean=mean, deviations=sum((x - mean) ** 2 for x in part))
        again = RunningMoments()
        again.load_state_dict(moments.state_dict())
        moments = again
    assert (moments.count, moments.mean) == (4.0, pytest.approx(3.0))
    assert moments.std == pytest.approx(math.sqrt(14 / 3))
    assert moments.normalized(6.0) == pytest.approx(3 / math.sqrt(14 / 3))
    moments.update(count=0.0, mean=0.0, deviations=0.0)
    assert moments.count == 4.0
