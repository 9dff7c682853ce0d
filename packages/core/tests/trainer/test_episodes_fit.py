"""A whole run with an environment: it trains, evaluates, logs its turns, and packed rows give the update that padded ones give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.rewards.environment import environment_reward
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn
from lightrft.testing.small_trainer import make_trainer


class Echo(Environment):
    """Three turns; a digit in the last one is right."""

    def step(self, turn: Turn) -> Step:
        if turn.number < 2:
            return Continue(text=f" {turn.number}", reward={"digits": 0.1 * any(c.isdigit() for c in turn.text)})
        return End(reward={"right": float(turn.text[:1].isdigit())}, info={"turns": turn.number + 1})


SETTINGS: dict[str, Any] = {
    "strategy": "single", "engine_type": "hf", "environment": f"{__name__}:Echo", "max_turns": 4, "turn_max_len": 2,
    "generate_max_len": 12, "logprob_gap_prompts": 4, "micro_rollout_batch_size": 4, "ignore_eos": True,
}  # fmt: skip


def fit(folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    trainer = make_trainer(folder, reward=environment_reward, **SETTINGS | changes)
    return trainer, trainer.fit()


def test_a_run_with_an_environment_leaves_its_turns(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, save_samples=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "episode/turns" in row]
    assert [row["episode/turns"] for row in trained] == [3.0, 3.0]
    assert all(row["rollout/logprob_gap_max"] < 1e-5 and row["episode/env_error"] == 0.0 for row in trained)
    assert [row["rollout/length_mean"] for row in trained] == [6.0, 6.0]
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert [turn["by"] for turn in sample["turns"]] == ["policy", "environment"] * 2 + ["policy"]
    evaluated = json.loads((tmp_path / "run" / "eval_samples-2.jsonl").read_text().splitlines()[0])
    assert evaluated["num_tokens"] == 6
    assert trainer.experience_maker.episodes is not None


def test_packed_rows_with_holes_give_the_update_of_padded_ones(tmp_path: Path) -> None:
    padded, _ = fit(tmp_path / "padded", max_steps=1)
    packed, _ = fit(tmp_path / "packed", max_steps=1, packing_samples=True, max_tokens_per_micro_batch=64)
    before = make_trainer(tmp_path / "before", reward=environment_reward, **SETTINGS).actor.state_dict()
    moved = 0.0
    for (name, mine), other in zip(padded.actor.state_dict().items(), packed.actor.state_dict().values(), strict=True):
        moved = max(moved, float((mine - before[name]).abs().max()))
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5, msg=name)
    assert moved > 1e-4


class Endless(Environment):
    """Goes on after every turn, and gives nothing."""

    def step(self, turn: Turn) -> Step:
        return Continue(text=f" {turn.number}")


class EndlessAfterDigits(Environment):
    """Ends at once; after a turn that begins with a digit it never does."""

    def step(self, turn: Turn) -> Step:
        digit = turn.text[:1].isdigit() or turn.number > 0
        return Continue(text=" 1") if digit else End(reward=1.0)


def first_step(folder: Path, environment: type[Environment], **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The trainer of one step, and that step's metrics."""
    trainer, _ = fit(folder, environment=f"{__name__}:{environment.__name__}", max_steps=1, **changes)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return trainer, next(row for row in rows if "episode/turns" in row)


def test_episodes_that_are_all_cut_off_teach_nothing(tmp_path: Path) -> None:
    trainer, metrics = first_step(tmp_path, Endless, overlong_filter=True)
    # 2 tokens sampled and 2 of the environment, then again, then 2 sampled: after more words a fourth turn has no room in 12
    assert (metrics["episode/turns"], metrics["rollout/length_mean"], metrics["rollout/truncated"]) == (3.0, 6.0, 1.0)
    assert len(trainer.experience) == 16 and not trainer.experience.trains.any()
    assert (metrics["rollout/left_out"], metrics["train/loss"], metrics["train/grad_norm"]) == (1.0, 0.0, 0.0)


def test_episodes_that_end_teach_beside_those_that_are_cut_off(tmp_path: Path) -> None:
    trainer, metrics = first_step(tmp_path, EndlessAfterDigits, overlong_filter=True)
    cut = [sample.finish_reason == "length" for sample in trainer.experience.samples]
    assert [sample.num_tokens for sample in trainer.experience.samples] == [6 if one else 2 for one in cut]
    assert trainer.experience.trains.tolist() == [not one for one in cut]
    fraction = sum(cut) / 16
    assert 0.0 < fraction < 1.0 and metrics["rollout/left_out"] == metrics["rollout/truncated"] == fraction
    assert (metrics["episode/turns"], metrics["rollout/reward"]) == (1.0 + 2.0 * fraction, 1.0 - fraction)
    assert metrics["train/grad_norm"] > 0.0


@pytest.mark.parametrize(("environment", "rollouts", "flat"), [(Endless, 2, 1.0), (EndlessAfterDigits, 1, 0.0)])
def test_dynamic_sampling_counts_groups_of_episodes(tmp_path: Path, environment: type[Environment], rollouts: int, flat: float) -> None:
    trainer, metrics = first_step(tmp_path, environment, dynamic_sampling=True, dynamic_sampling_tries=2)
    assert (metrics["sampling/rollouts"], metrics["sampling/groups"], metrics["sampling/flat_groups"]) == (rollouts, 4 * rollouts, flat)
    assert metrics["tokens/rollout"] == rollouts * 16 * metrics["rollout/length_mean"]
    assert len(trainer.experience) == 16 and metrics["rollout/zero_variance_groups"] == flat
    assert (metrics["train/grad_norm"] == 0.0) == (flat == 1.0)
