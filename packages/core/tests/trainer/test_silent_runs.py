"""Each situation in which nothing, or the wrong thing, is learned is told in words, at its step; and a run in order says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.diagnostics.label_leak import labels_in_prompts
from lightrft.diagnostics.learning_watch import LearningWatch, planned_rates
from lightrft.diagnostics.monitors import Monitors
from lightrft.errors import StoppedByWarning
from lightrft.testing.silent_runs import SILENT_RUNS, SilentRun, table
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer.steps import bound_in_words, count_updates, num_rollouts


@pytest.mark.parametrize("case", SILENT_RUNS, ids=lambda case: case.name)
def test_it_is_said_in_its_step(case: SilentRun) -> None:
    [row] = table([case])
    assert row["right"], row


GOOD = {"train/grad_norm": 1.0, "train/skipped_steps": 0.0, "rollout/truncated": 0.2, "sync/weights_moved": 1.0}


def watch(**settings: Any) -> LearningWatch:
    return LearningWatch(make_config({"monitor_steps": 3, **settings}), updates_per_rollout=4)


def test_once_for_each_stretch_and_never_while_something_is_learned() -> None:
    one = watch()
    bad = GOOD | {"train/grad_norm": 0.0}
    said = [[name for name, _ in one.observe(metrics)] for metrics in [bad, bad, GOOD, bad, bad, bad, bad, bad, GOOD, bad, bad, bad]]
    assert said == [[], [], [], [], [], ["no_gradient"], [], [], [], [], [], ["no_gradient"]]
    assert one.conclude(bad) == []


def test_some_skipped_steps_are_no_fault_and_a_warm_up_of_the_critic_counts_as_nothing() -> None:
    one = watch()
    for _ in range(5):
        assert one.observe(GOOD | {"train/skipped_steps": 3.0, "train/grad_norm": float("nan")}) == []
        assert one.observe({"critic/loss": 1.0}) == []
    assert [name for _ in range(3) for name, _ in one.observe(GOOD | {"train/skipped_steps": 4.0})] == ["steps_skipped"]


def test_what_the_rewards_explain_is_said_once() -> None:
    dead = GOOD | {"train/grad_norm": 0.0, "rollout/zero_variance_groups": 1.0}
    one, other = watch(), watch()
    assert [f for _ in range(3) for f in one.observe(dead, told=["zero_variance"])] == []
    [(name, text)] = [f for _ in range(3) for f in other.observe(dead)]
    assert name == "no_gradient" and "no prompt has completions with two different rewards" in text


def test_it_goes_on_where_it_was() -> None:
    one, resumed = watch(), watch()
    bad = GOOD | {"train/grad_norm": 0.0}
    one.observe(bad), one.observe(bad)
    resumed.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [name for name, _ in resumed.observe(bad)] == ["no_gradient"]


class Schedule:
    def __init__(self, warmup: int) -> None:
        self.lr_lambdas = [lambda step: min(1.0, step / warmup)]


@pytest.mark.parametrize(
    ("warmup", "number", "told"), [(1000, 8, True), (1, 1, True), (1, 2, False), (700, 8, False), (10**6, 10**4, True)]
)
def test_a_rate_that_stays_below_a_hundredth_of_its_peak(warmup: int, number: int, told: bool) -> None:
    assert (watch().plan(Schedule(warmup), number=number) is not None) == told
    assert len(planned_rates(Schedule(warmup), number=number)) <= 1002


def test_a_schedule_that_cannot_be_asked_says_nothing() -> None:
    assert watch().plan(None, number=8) is None and watch().plan(object(), number=8) is None


def series(metric: str, values: list[float]) -> list[tuple[int, str]]:
    monitors = Monitors(make_config({"monitor_steps": 5}), first_ratio_limit=0.02)
    return [(step, name) for step, value in enumerate(values, 1) for name, _ in monitors.observe({metric: value})]


def test_a_ceiling_on_length_is_told_where_completions_ended_by_themselves_before() -> None:
    assert series("rollout/truncated", [0.19, 0.2, 0.18, 0.5, 0.9, 0.9, 0.9]) == [(7, "length_ceiling")]
    assert series("rollout/truncated", [0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0]) == [], "most were cut off from the start"
    assert series("rollout/truncated", [0.2] * 3 + [0.5, 0.6, 0.4] * 4) == []


def test_a_critic_at_zero_is_told_and_one_that_learns_is_not() -> None:
    assert series("critic/explained_variance", [0.0] * 12) == [(10, "critic_constant")]
    assert series("critic/explained_variance", [0.0] * 9 + [0.1] + [0.0] * 9) == []
    assert series("critic/explained_variance", [-0.2] * 12) == [(5, "critic_useless")]


def test_a_first_step_off_its_policy_is_told_once() -> None:
    assert series("train/first_ratio_error", [0.0, 0.019, 0.03, 0.5, 0.0, 0.03]) == [(3, "first_ratio"), (6, "first_ratio")]


def rows(*pairs: tuple[str, str]) -> list[Prompt]:
    return [Prompt(index=i, text=text, token_ids=(1,), answer=answer, row={}) for i, (text, answer) in enumerate(pairs)]


SENTENCE = "she buys 12 apples and eats 5, so 7 are left #### 7"


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (rows(("1 + 1 = 2", "2"), ("2 + 2 = 4", "4"), ("3 + 5 = 8", "8")), True),
        (rows(("1 + 1 =", "2"), ("2 + 2 =", "4"), ("3 + 5 =", "8")), False),
        (rows(*[(f"A) x{n} B) y{n}", "AB"[n % 2]) for n in range(8)]), False),
        (rows(*[(f"{n} apples", str(n + 1)) for n in range(9)], (f"Ann. {SENTENCE}", SENTENCE)), True),
        (rows(("which is odd: 12 or 7?", "2"), ("0 or 14?", "4")), False),
        (rows(("the capital of Peru", "")), False),
    ],
)
def test_an_answer_that_stands_in_its_own_prompt(prompts: list[Prompt], told: bool) -> None:
    found = labels_in_prompts(prompts)
    assert (found is not None) == told, found


def test_on_warning_stop_ends_the_run_with_a_checkpoint_and_a_summary(tmp_path: Path) -> None:
    def nothing(samples: Any) -> list[float]:
        return [0.0] * len(samples)

    trainer = make_trainer(tmp_path, reward=nothing, eval_prompts=(), max_steps=20, on_warning="stop", dead_reward_steps=2)
    with pytest.raises(StoppedByWarning, match=r"step 2: the run stops at a warning \(on_warning=stop\), constant_reward: reward is 0.0"):
        trainer.fit()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["stopped"].startswith("step 2: ") and summary["checkpoint"].endswith("step-2")
    resumed = make_trainer(
        tmp_path / "more", reward=nothing, eval_prompts=(), max_steps=3, resume_from=summary["checkpoint"], on_warning="stop"
    )
    assert resumed.fit()["steps"] == 3, "a warning of before the resume does not stop it again"


def test_max_steps_decides_and_the_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config({"rollout_batch_size": 4, "n_samples_per_prompt": 2, "train_batch_size": 4, "max_epochs": 3, "max_steps": 60})
    assert num_rollouts(config, num_prompts=61) == 60 and count_updates(config, num_prompts=61) == 360
    assert count_updates(config, num_prompts=61, first_rollouts_without=10) == 300
    assert bound_in_words(config, num_prompts=61) == "60 rollouts: max_steps=60 decides (num_episodes=1 over 61 prompts would be 16)"
    free = config.model_copy(update={"max_steps": 0, "num_episodes": 2})
    assert num_rollouts(free, num_prompts=61) == 32
    assert make_trainer(tmp_path, max_steps=5).fit()["steps"] == 5
    assert "5 rollouts: max_steps=5 decides (num_episodes=1 over 6 prompts would be 2)" in capsys.readouterr().out


def test_the_rate_that_is_logged_is_that_of_the_step_that_was_made(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, train_batch_size=16)
    trainer.learner.policy.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.actor_optim, lambda step: 1 / (1 + step))
    assert [row["train/lr"] for row in _steps(trainer, tmp_path)] == [0.01, 0.005]


def _steps(trainer: Any, folder: Path) -> list[dict[str, float]]:
    trainer.fit()
    return [row for row in map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines()) if "train/lr" in row]
