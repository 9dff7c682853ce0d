"""Rewards become advantages as the settings say. KL penalty by token, normalisation over rollouts, whitening, groups of one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightrft.algorithms.dr_grpo import dr_grpo
from lightrft.algorithms.gae import gae
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.reinforce_pp import reinforce_pp
from lightrft.batch.stages import Scored, Trainable
from lightrft.config.load import make_config
from lightrft.experience.advantages import AdvantageMaker
from lightrft.strategy.factory import get_strategy
from lightrft.testing.batches import batch_of
from lightrft.testing.fake_strategy import fake_registry
from lightrft.types import Episode, Sample


def make(estimator: Any, *, critic: bool = False, greedy: bool = False, **changes: Any) -> AdvantageMaker:
    config = make_config({"strategy": "fake", "engine_type": "fake", **changes})
    return AdvantageMaker(
        strategy=get_strategy(config, registry=fake_registry()), config=config, estimator=estimator, critic=critic, greedy=greedy
    )


Row = tuple[float, int, Sequence[float]]


def row(reward: float, group: int, kl: Sequence[float] = (0.0, 0.0)) -> Row:
    """`kl`: log pi - log pi_reference of its tokens."""
    return reward, group, kl


def batch(*rows: Row, **columns: Any) -> Scored:
    return batch_of(
        Scored, [([1], [3] * len(kl)) for _, _, kl in rows], group_ids=[group for _, group, _ in rows],
        rewards=[reward for reward, _, _ in rows], reference_logprobs=[-torch.tensor(kl) for _, _, kl in rows], **columns,
    )  # fmt: skip


def run(maker: AdvantageMaker, scored: Scored, *, kl_coef: float = 0.0) -> tuple[Trainable, dict[str, float]]:
    found = maker.run(scored, kl_coef=kl_coef)
    return found, maker.metrics.reduce(None)


def by_row(found: Trainable) -> list[list[float]]:
    return [values.tolist() for values in found.by_sequence(found.advantages)]


def first(found: Trainable) -> list[float]:
    return [values[0] for values in by_row(found)]


def test_a_kl_penalty_falls_on_each_token() -> None:
    maker = make(reinforce_pp, kl_coef=0.5, kl_estimator="k1", kl_in="reward", whiten_advantages="no")
    found, metrics = run(maker, batch(row(1.0, 0, (0.2, -0.1)), row(0.0, 0, (0.4,))), kl_coef=0.5)
    # rewards by token: -0.1, 1 + 0.05 and -0.2; returns from each on
    assert by_row(found)[0] == pytest.approx([0.95, 1.05])
    assert by_row(found)[1] == pytest.approx([-0.2])
    # sums over completions 0.1 and 0.4
    assert metrics["rollout/kl"] == pytest.approx(0.25)


def test_the_same_penalty_counts_in_an_outcome_and_its_coefficient_is_the_controller_s() -> None:
    maker = make(dr_grpo, kl_coef=0.5, kl_estimator="k1", kl_in="reward")
    found, _ = run(maker, batch(row(1.0, 0, (0.2, -0.1)), row(0.0, 0, (0.4,))), kl_coef=1.0)
    # totals 1 - 0.1 = 0.9 and -0.4: mean 0.25
    assert first(found) == pytest.approx([0.65, -0.65])


def test_normalised_rewards_are_in_deviations_of_all_rewards_so_far() -> None:
    maker = make(lambda one: Advantages(advantages=(one.rewards[:, None] * one.mask).float()), normalize_rewards=True)
    one, _ = run(maker, batch(row(1.0, 0), row(2.0, 0)))
    assert first(one) == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-5)
    two, _ = run(maker, batch(row(3.0, 0), row(6.0, 0)))
    # all so far: 1, 2, 3, 6, mean 3, variance 14 / 3
    assert first(two) == pytest.approx([0.0, 3 / (14 / 3) ** 0.5], rel=1e-5)
    assert maker.moments.state_dict()["count"] == 4


@pytest.mark.parametrize(("setting", "whitened"), [("auto", False), ("yes", True), ("no", False)])
def test_whitening_where_it_is_asked_for(setting: str, whitened: bool) -> None:
    found, metrics = run(make(dr_grpo, whiten_advantages=setting), batch(row(4.0, 0), row(0.0, 0), row(1.0, 1), row(1.0, 1)))
    every = found.sampled(found.advantages)
    assert float(every.std()) == pytest.approx(1.0 if whitened else 2.0 * (8 / 7 / 2) ** 0.5, rel=1e-4)
    assert metrics["rollout/advantage_std"] == pytest.approx(float(every.std(unbiased=False)), rel=1e-4)


def test_groups_of_one_are_counted_and_no_completions_are_no_error() -> None:
    maker = make(dr_grpo)
    assert run(maker, batch(row(1.0, 0), row(1.0, 1), row(0.0, 1)))[1]["rollout/groups_of_one"] == 0.5
    assert run(maker, batch())[1] == {"rollout/advantage_std": 0.0, "rollout/groups_of_one": 0.0}


def test_an_estimator_sees_values_baselines_and_settings() -> None:
    seen: list[AdvantageInput] = []

    def spy(one: AdvantageInput) -> Advantages:
        seen.append(one)
        return Advantages(advantages=one.mask, returns=2 * one.mask)

    scored = batch(row(1.0, 5), row(0.0, 6, (0.0,)), values=[0.0, 1.0], baselines=[0.25, 0.25])
    found, _ = run(make(spy, critic=True, greedy=True, gamma=0.5, lambd=0.25), scored)
    run(make(spy), scored)
    told, other = seen
    assert told.values is not None and told.values.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert told.baselines is not None and told.baselines.tolist() == [0.25, 0.25]
    assert other.values is None and other.baselines is None, "nothing is made up where there is no critic and nothing greedy"
    assert (told.gamma, told.lambd, told.group_ids.tolist(), told.mask.tolist()) == (0.5, 0.25, [5, 6], [[1.0, 1.0], [1.0, 0.0]])
    assert [values.tolist() for values in found.by_sequence(found.returns)] == [[2.0, 2.0], [2.0]]


def two_turns(*, error: str = "") -> list[Sample]:
    """Two tokens earned 1 and the next two 3; with the weight 2, and 0.5 of another reward, 8.5 together."""
    return [Sample(prompt="", completion="", episode=Episode(earned=((2, 1.0), (4, 3.0)), error=error))]


TURNS: dict[str, Any] = {"reward": ["environment", "exact_match"], "reward_weights": [2.0, 1.0], "whiten_advantages": "no"}


@pytest.mark.parametrize(
    ("credit", "error", "expected"),
    [
        ("turn", "", [1.8125, 3.625, 3.25, 6.5]),
        ("episode", "", [1.0625, 2.125, 4.25, 8.5]),
        ("turn", "step: it failed", [1.0625, 2.125, 4.25, 8.5]),
    ],
)
def test_what_a_turn_earned_stands_at_its_last_token(credit: str, error: str, expected: list[float]) -> None:
    """Discounted by a half for each token: 2 behind the second one, and 6.5, the rest, behind the fourth."""
    maker = make(reinforce_pp, turn_credit=credit, gamma=0.5, **TURNS)
    found, _ = run(maker, batch(row(8.5, 0, (0.0,) * 4), samples=two_turns(error=error)))
    assert by_row(found) == [pytest.approx(expected)]


def test_a_critic_learns_what_is_still_to_be_earned() -> None:
    maker = make(gae, critic=True, turn_credit="turn", lambd=1.0, **TURNS)
    found, _ = run(maker, batch(row(8.5, 0, (0.0,) * 4), samples=two_turns(), values=[[1.0, 2.0, 3.0, 4.0]]))
    assert by_row(found) == [pytest.approx([7.5, 6.5, 3.5, 2.5])]
    assert found.by_sequence(found.returns)[0].tolist() == pytest.approx([8.5, 8.5, 6.5, 6.5])


def test_a_penalty_falls_on_each_token_beside_what_turns_earned() -> None:
    maker = make(reinforce_pp, turn_credit="turn", kl_coef=0.5, kl_estimator="k1", kl_in="reward", **TURNS)
    found, _ = run(maker, batch(row(8.5, 0, (0.2, 0.0, 0.4, 0.0)), samples=two_turns()), kl_coef=0.5)
    assert by_row(found) == [pytest.approx([8.2, 8.3, 6.3, 6.5])]
