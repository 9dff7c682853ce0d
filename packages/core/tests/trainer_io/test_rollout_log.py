"""The completions that a run keeps are few and telling; its distributions count every completion."""

from __future__ import annotations

import json
from pathlib import Path

from lightrft.run.plots import plot_rewards
from lightrft.run.rollout_log import append_distributions, chosen
from lightrft.testing.small_trainer import make_trainer


def test_a_run_keeps_a_few_completions_of_each_step_and_its_distributions(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, plot_every=1, save_samples=2)
    trainer.fit()
    folder = tmp_path / "run"
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [1, 1, 2, 2]
    assert samples[2]["reward"] == float(trainer.experience.rewards.max())
    assert samples[3]["reward"] == float(trainer.experience.rewards.min())
    assert samples[0]["prompt"].endswith("=") and samples[0]["num_tokens"] > 0
    last = json.loads((folder / "distributions.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and sum(n for _, n in last["lengths"]) == sum(n for _, n in last["rewards"]) == 16
    assert sum(value * n for value, n in last["lengths"]) == int(trainer.experience.num_sampled.sum())
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {"curves.png", "lengths-000001.png", "lengths-000002.png", "rewards-000001.png", "rewards-000002.png"}


def test_best_worst_and_median_come_first_and_none_twice() -> None:
    rewards = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert chosen(rewards, 3) == [4, 0, 2]
    assert sorted(chosen(rewards, 9)) == sorted(chosen(rewards, 10**18)) == [0, 1, 2, 3, 4]  # no list of so many places
    assert chosen(rewards[:1], 3) == [0] and chosen([], 3) == []


def test_distributions_are_pairs_of_value_and_number(tmp_path: Path) -> None:
    append_distributions(tmp_path, 4, lengths=[3, 5, 3], rewards=[1.0, 0.0, 1.0])
    assert json.loads((tmp_path / "distributions.jsonl").read_text()) == {
        "step": 4,
        "lengths": [[3, 2], [5, 1]],
        "rewards": [[0.0, 1], [1.0, 2]],
    }


def test_rewards_that_are_all_one_are_drawn(tmp_path: Path) -> None:
    plot_rewards([0.5, 0.5], path=tmp_path / "r.png", step=1)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
