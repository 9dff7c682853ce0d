"""Do rewards become advantages as the settings say? KL penalty by token, normalisation over rollouts, whitening, groups of one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lightrft.algorithms.dr_grpo import dr_grpo
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.reinforce_pp import reinforce_pp
from lightrft.config.load import make_config
from lightrft.experience.advantages import AdvantageMaker
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.types import Completion, Sample


def make(estimator: Any, **changes: Any) -> AdvantageMaker:
    config = make_config({"strategy": "fake", "engine_type": "fake", **changes})
    return AdvantageMaker(strategy=get_strategy(config, registry=fake_registry()), config=config, estimator=estimator)


def row(reward: float, group: int, kl: Sequence[float] = (0.0, 0.0)) -> Trajectory:
    """`kl`: log pi - log pi_initial of its tokens."""
    completion = Completion(token_ids=[3] * len(kl), finish_reason="stop", weight_version=0)
    made = Trajectory(prompt_ids=[1], completion=completion, sample=Sample(prompt="", completion=""), group_id=group, reward=reward)
    made.old_logprobs = torch.zeros(len(kl))
    made.initial_logprobs = -torch.tensor(kl)
    return made


def first(rows: Sequence[Trajectory]) -> list[float]:
    return [float(r.advantages[0]) for r in rows if r.advantages is not None]


def test_a_kl_penalty_falls_on_each_token() -> None:
    rows = [row(1.0, 0, (0.2, -0.1)), row(0.0, 0, (0.4,))]
    found = make(reinforce_pp, kl_coef=0.5, kl_estimator="k1", kl_in="reward", whiten_advantages="no").run(rows, kl_coef=0.5)
    # rewards by token: -0.1, 1 + 0.05 and -0.2; returns from each on
    assert rows[0].advantages is not None and rows[1].advantages is not None
    assert rows[0].advantages.tolist() == pytest.approx([0.95, 1.05])
    assert rows[1].advantages.tolist() == pytest.approx([-0.2])
    # sums over completions 0.1 and 0.4
    assert found["rollout/kl"] == pytest.approx(0.25)


def test_the_same_penalty_counts_in_an_outcome_and_its_coefficient_is_the_controller_s() -> None:
    rows = [row(1.0, 0, (0.2, -0.1)), row(0.0, 0, (0.4,))]
    make(dr_grpo, kl_coef=0.5, kl_estimator="k1", kl_in="reward").run(rows, kl_coef=1.0)
    # totals 1 - 0.1 = 0.9 and -0.4: mean 0.25
    assert first(rows) == pytest.approx([0.65, -0.65])


def test_normalised_rewards_are_in_deviations_of_all_rewards_so_far() -> None:
    maker = make(lambda batch: Advantages(advantages=(batch.rewards[:, None] * batch.mask).float()), normalize_rewards=True)
    one = [row(1.0, 0), row(2.0, 0)]
    maker.run(one, kl_coef=0.0)
    assert first(one) == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-5)
    two = [row(3.0, 0), row(6.0, 0)]
    maker.run(two, kl_coef=0.0)
    # all so far: 1, 2, 3, 6, mean 3, variance 14 / 3
    assert first(two) == pytest.approx([0.0, 3 / (14 / 3) ** 0.5], rel=1e-5)
    assert maker.moments.state_dict()["count"] == 4


@pytest.mark.parametrize(("setting", "whitened"), [("auto", False), ("yes", True), ("no", False)])
def test_whitening_where_it_is_asked_for(setting: str, whitened: bool) -> None:
    rows = [row(4.0, 0), row(0.0, 0), row(1.0, 1), row(1.0, 1)]
    metrics = make(dr_grpo, whiten_advantages=setting).run(rows, kl_coef=0.0)
    every = torch.cat([r.advantages for r in rows if r.advantages is not None])
    assert float(every.std()) == pytest.approx(1.0 if whitened else 2.0 * (8 / 7 / 2) ** 0.5, rel=1e-4)
    assert metrics["rollout/advantage_std"] == pytest.approx(float(every.std(unbiased=False)), rel=1e-4)


def test_groups_of_one_are_counted_and_no_completions_are_no_error() -> None:
    maker = make(dr_grpo)
    assert maker.run([row(1.0, 0), row(1.0, 1), row(0.0, 1)], kl_coef=0.0)["rollout/groups_of_one"] == 0.5
    assert maker.run([], kl_coef=0.0) == {"rollout/advantage_std": 0.0, "rollout/groups_of_one": 0.0}


def test_an_estimator_sees_values_baselines_and_settings() -> None:
    seen: list[AdvantageInput] = []

    def spy(batch: AdvantageInput) -> Advantages:
        seen.append(batch)
        return Advantages(advantages=batch.mask, returns=2 * batch.mask)

    rows = [row(1.0, 5), row(0.0, 6, (0.0,))]
    for number, r in enumerate(rows):
        r.values, r.baseline = torch.full((r.num_tokens,), float(number)), 0.25
    make(spy, gamma=0.5, lambd=0.25).run(rows, kl_coef=0.0)
    [batch] = seen
    assert batch.values is not None and batch.values.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert batch.baselines is not None and batch.baselines.tolist() == [0.25, 0.25]
    assert (batch.gamma, batch.lambd, batch.group_ids.tolist(), batch.mask.tolist()) == (0.5, 0.25, [5, 6], [[1.0, 1.0], [1.0, 0.0]])
    assert [r.returns.tolist() for r in rows if r.returns is not None] == [[2.0, 2.0], [2.0]]
