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


@pytest.mark.parametrize("changes", [{"overlong_filter": True}, {"dynamic_sampling": True, "dynamic_sampling_tries": 2}])
def test_what_treats_completions_treats_episodes(tmp_path: Path, changes: dict[str, Any]) -> None:
    fit(tmp_path, max_steps=1, **changes)
