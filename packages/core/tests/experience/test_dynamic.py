"""Dynamic sampling, the treatment of overlong completions and balancing, by hand; the ranks together are in tests/test_reward_ranks.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.experience.balance import assign
from lightrft.experience.dynamic import DynamicSampling
from lightrft.experience.groups import even_targets
from lightrft.experience.overlong import soft_punishment, treat_overlong
from lightrft.experience.trajectory import Trajectory
from lightrft.observe.warnings_log import Warnings
from lightrft.strategy.factory import get_strategy
from lightrft.testing.fake_strategy import FakeStrategy, fake_registry
from lightrft.trainer.minibatches import mini_batches
from lightrft.types import Completion, Sample

N = 2


def completion(num_tokens: int, *, group: int = 0, reward: float = 0.0, reason: str = "stop") -> Trajectory:
    made = Completion(token_ids=[1] * num_tokens, finish_reason=reason, weight_version=1)  # type: ignore[arg-type]
    return Trajectory(prompt_ids=[1], completion=made, sample=Sample(prompt=f"p{group}", completion="c"), group_id=group, reward=reward)


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
    metrics: dict[str, float] = {}

    def rollout(prompts: Sequence[Prompt]) -> list[Trajectory]:
        calls.append(len(calls))
        rows = lives[calls[-1]]
        first = sum(len(row) for row in lives[: calls[-1]])
        made = [completion(1, group=i, reward=float(live and k)) for i, live in enumerate(rows) for k in range(N)]
        for index, one in enumerate(made):
            one.sample = Sample(prompt=f"p{first + index // N}", completion="c")
        return made

    def reward(rows: list[Trajectory]) -> None:
        metrics["reward/r"] = sum(t.reward for t in rows) / len(rows)

    return DynamicSampling(
        strategy=strategy, config=config, next_prompts=lambda: [], rollout=rollout, reward=reward,
        warnings=Warnings(world=strategy.world), metrics=metrics,
    )  # fmt: skip


def prompts_of(rows: Sequence[Trajectory]) -> list[str]:
    return [t.sample.prompt for t in rows[::N]]


def test_groups_without_a_signal_are_replaced_by_those_of_further_prompts(tmp_path: Path) -> None:
    unit = sampling(tmp_path, [[True, False, False, True], [False, False, True, False], [True, True, True, True]])
    rows = unit.collect()
    assert prompts_of(rows) == ["p0", "p3", "p6", "p8"] and len({t.group_id for t in rows}) == 4
    assert all(a.group_id == b.group_id and a.reward != b.reward for a, b in zip(rows[::N], rows[1::N], strict=True))
    assert unit.metrics["sampling/rollouts"] == 3 and unit.metrics["sampling/groups"] == 12
    assert unit.metrics["sampling/flat_groups"] == pytest.approx(5 / 12)
    # half of the completions of a group with a signal earn 1: 7 of 24
    assert unit.metrics["sampling/reward"] == pytest.approx(7 / 24) and unit.metrics["reward/r"] == pytest.approx(7 / 24)
    assert unit.warnings.rows == [] and unit.strategy.calls.count("sleep") == 1  # type: ignore[attr-defined]


def test_a_rollout_with_a_signal_everywhere_is_enough(tmp_path: Path) -> None:
    unit = sampling(tmp_path, [[True, True]])
    assert prompts_of(unit.collect()) == ["p0", "p1"] and unit.metrics["sampling/rollouts"] == 1


def test_at_the_bound_the_step_is_filled_up_and_that_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lives = [[False, True, False, False]] + [[False] * 4] * 3
    unit = sampling(tmp_path, [*lives, *lives], dynamic_sampling_tries=4)
    assert prompts_of(unit.collect()) == ["p0", "p1", "p2", "p3"]
    assert unit.metrics["sampling/rollouts"] == 4
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
    rows = [completion(10, reward=1.0), completion(18, reward=1.0), completion(20, reward=1.0, reason="length")]
    rows[0].greedy, rows[0].baseline = completion(19), 1.0
    assert treat_overlong(rows, config=config) == [0.0, -1.0, -2.0]
    assert [t.reward for t in rows] == [1.0, 0.0, -1.0] and [t.trains for t in rows] == [True, True, False]
    assert rows[0].baseline == pytest.approx(1.0 - 2 * 0.75)
    plain = [completion(20, reward=1.0, reason="length")]
    assert treat_overlong(plain, config=make_config({"generate_max_len": 20})) == [0.0] and plain[0].trains and plain[0].reward == 1.0


def test_what_does_not_train_is_in_no_step_and_in_no_count() -> None:
    config = make_config({"strategy": "fake", "engine_type": "fake", "train_batch_size": 2})
    strategy = get_strategy(config, registry=fake_registry())
    rows = [completion(n) for n in (3, 5, 7, 9)]
    rows[0].trains = rows[2].trains = False
    steps = mini_batches(rows, config=config, strategy=strategy, seed=0)
    assert len(steps) == 2 and sorted(t.num_tokens for step in steps for t in step.rows) == [5, 9]
    assert sum(step.num_tokens for step in steps) == 14 and sum(step.num_sequences for step in steps) == 2


def test_few_items_move_and_counts_are_even() -> None:
    assert even_targets([4, 0]) == [[0, 0, 1, 1], []]
    assert even_targets([1, 3]) == [[0], [1, 1, 0]]
    assert even_targets([2, 2]) == [[0, 0], [1, 1]]
    assert even_targets([0, 5, 0]) == [[], [1, 1, 0, 0, 2], []]


def test_ranks_get_equal_counts_and_about_as_many_tokens() -> None:
    # 100 and 1+1 against 60+50: by hand, longest first: 100 -> 0, 60 -> 1, 50 -> 1; rank 1 is full at three: 30 -> 0, 2 -> 1, 1 -> 0
    assert assign([[100, 60, 50], [30, 2, 1]]) == [[0, 1, 1], [0, 1, 0]]
    generator = torch.Generator().manual_seed(0)
    lengths = [torch.randint(1, 1000, (16,), generator=generator).tolist() for _ in range(4)]
    targets = assign(lengths)
    loads = [
        sum(n for row, to in zip(lengths, targets, strict=True) for n, t in zip(row, to, strict=True) if t == rank) for rank in range(4)
    ]
    assert [sum(row.count(rank) for row in targets) for rank in range(4)] == [16] * 4
    assert max(loads) - min(loads) < 0.05 * max(loads) and max(map(sum, lengths)) - min(map(sum, lengths)) > 3 * (max(loads) - min(loads))
