"""Dynamic sampling, the treatment of overlong completions and balancing, by hand; the ranks together are in tests/test_reward_ranks.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lightrft.batch.exchange import even_targets
from lightrft.batch.planning import Batching, epochs
from lightrft.batch.stages import Rewarded, Sampled, Trainable
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.dynamic import DynamicSampling
from lightrft.experience.overlong import soft_punishment, treat_overlong
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.factory import get_strategy
from lightrft.testing.batches import batch_of
from lightrft.testing.fake_strategy import FakeStrategy, fake_registry
from lightrft.types import Sample

N = 2


def sampling(folder: Path, lives: Sequence[Sequence[bool]], **changes: object) -> DynamicSampling:
    """Rollout k has groups with a signal where `lives[k]` says so; prompts are numbered on, and engines number from 0 in each call."""
    settings = {
        "strategy": "fake",
        "engine_type": "fake",
        "rollout_batch_size": len(lives[0]),
        "dynamic_sampling": True,
        "output_dir": str(folder),
    }
    config = make_config(settings | {"n_samples_per_prompt": N} | changes)
    strategy = get_strategy(config, registry=fake_registry())
    assert isinstance(strategy, FakeStrategy)
    strategy.maybe_sleep_inference_engine = lambda: strategy.calls.append("sleep")  # type: ignore[method-assign]
    calls: list[int] = []
    metrics = StepMetrics()

    def rollout(prompts: Sequence[Prompt]) -> Sampled:
        calls.append(len(calls))
        rows = lives[calls[-1]]
        first = sum(len(row) for row in lives[: calls[-1]])
        groups = [i for i in range(len(rows)) for _ in range(N)]
        samples = [Sample(prompt=f"p{first + i}", completion="c") for i in groups]
        return batch_of(Sampled, [([1], [1])] * len(groups), group_ids=groups, samples=samples)

    def reward(batch: Sampled) -> Rewarded:
        rewards = torch.tensor([float(live and k) for live in lives[calls[-1]] for k in range(N)], dtype=torch.float64)
        metrics.mean("reward/r", float(rewards.sum()), len(rewards))
        blank = torch.zeros(len(batch), dtype=torch.float64)
        return batch.as_stage(Rewarded, rewards=rewards, baselines=blank, trains=blank == 0)

    return DynamicSampling(
        strategy=strategy, config=config, next_prompts=lambda: [], rollout=rollout, reward=reward,
        warnings=Warnings(world=strategy.world), metrics=metrics,
    )  # fmt: skip


def prompts_of(rows: Rewarded) -> list[str]:
    return [sample.prompt for sample in rows.samples[::N]]


def counted(unit: DynamicSampling) -> dict[str, float]:
    return unit.metrics.reduce(None)


def test_groups_without_a_signal_are_replaced_by_those_of_further_prompts(tmp_path: Path) -> None:
    unit = sampling(tmp_path, [[True, False, False, True], [False, False, True, False], [True, True, True, True]])
    rows = unit.collect()
    assert prompts_of(rows) == ["p0", "p3", "p6", "p8"] and len(set(rows.group_ids.tolist())) == 4
    assert torch.equal(rows.group_ids[::N], rows.group_ids[1::N]) and bool((rows.rewards[::N] != rows.rewards[1::N]).all())
    found = counted(unit)
    assert found["sampling/rollouts"] == 3 and found["sampling/groups"] == 12
    assert found["sampling/flat_groups"] == pytest.approx(5 / 12)
    # half of the completions of a group with a signal earn 1: 7 of 24
    assert found["sampling/reward"] == pytest.approx(7 / 24) and found["reward/r"] == pytest.approx(7 / 24)
    assert unit.warnings.rows == [] and unit.strategy.calls.count("sleep") == 1  # type: ignore[attr-defined]


def test_a_rollout_with_a_signal_everywhere_is_enough(tmp_path: Path) -> None:
    unit = sampling(tmp_path, [[True, True]])
    assert prompts_of(unit.collect()) == ["p0", "p1"] and counted(unit)["sampling/rollouts"] == 1


def test_at_the_bound_the_step_is_filled_up_and_that_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lives = [[False, True, False, False]] + [[False] * 4] * 3
    unit = sampling(tmp_path, [*lives, *lives], dynamic_sampling_tries=4)
    assert prompts_of(unit.collect()) == ["p0", "p1", "p2", "p3"]
    assert counted(unit)["sampling/rollouts"] == 4
    again = sampling(tmp_path, [*lives, *lives], dynamic_sampling_tries=4)
    again.load_state_dict(unit.state_dict())
    again.collect()
    assert again.warnings.rows == []
    [row] = unit.warnings.rows
    assert row.name == "dynamic_sampling_short"
    assert row.text.startswith("dynamic sampling: after 4 rollouts (dynamic_sampling_tries) only 1 of 4 groups have two different rewards")
    assert capsys.readouterr().out.count(f"WARNING: {row.text}") == 1


def test_soft_punishment_is_equation_13_of_dapo() -> None:
    found = [soft_punishment(n, longest=20, buffer=4) for n in (0, 16, 17, 18, 20, 21)]
    assert found == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_overlong_completions_are_punished_and_left_out_as_asked() -> None:
    config = make_config({"generate_max_len": 20, "overlong_buffer": 4, "overlong_penalty": 2.0, "overlong_filter": True})
    rows = batch_of(
        Rewarded, [([1], [1] * n) for n in (10, 18, 20)], reasons=["stop", "stop", "length"], rewards=[1.0] * 3,
        greedy=[Sample(prompt="p", completion="c", num_tokens=19), None, None], baselines=[1.0, 0.0, 0.0],
    )  # fmt: skip
    treated, punishments = treat_overlong(rows, config=config)
    assert punishments.tolist() == [0.0, -1.0, -2.0]
    assert treated.rewards.tolist() == [1.0, 0.0, -1.0] and treated.trains.tolist() == [True, True, False]
    assert treated.baselines[0] == pytest.approx(1.0 - 2 * 0.75)
    plain = batch_of(Rewarded, [([1], [1] * 20)], reasons=["length"], rewards=[1.0])
    same, none = treat_overlong(plain, config=make_config({"generate_max_len": 20}))
    assert none.tolist() == [0.0] and same.trains.tolist() == [True] and same.rewards.tolist() == [1.0]


def test_what_does_not_train_is_in_no_step_and_in_no_count() -> None:
    config = make_config({"strategy": "fake", "engine_type": "fake", "train_batch_size": 2})
    strategy = get_strategy(config, registry=fake_registry())
    rows = batch_of(Trainable, [([1], [1] * n) for n in (3, 5, 7, 9)], trains=[False, True, False, True])
    [epoch] = epochs(rows, Batching(train_batch_size=2, micro_batch_size=1), axis=strategy.mesh.data, seed=0)
    steps = epoch.steps
    assert len(steps) == 2 and sorted(int(n) for step in steps for n in rows.num_sampled[step.index]) == [5, 9]
    assert sum(step.num_tokens for step in steps) == 14 and sum(step.num_sequences for step in steps) == 2


def test_few_items_move_and_counts_are_even() -> None:
    assert even_targets([4, 0]) == [[0, 0, 1, 1], []]
    assert even_targets([1, 3]) == [[0], [1, 1, 0]]
    assert even_targets([2, 2]) == [[0, 0], [1, 1]]
    assert even_targets([0, 5, 0]) == [[], [1, 1, 0, 0, 2], []]
