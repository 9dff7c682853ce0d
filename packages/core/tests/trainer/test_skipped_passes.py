"""Passes that are left out because they would change nothing: the same run, bit for bit, with and without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.experience import batching, scorer
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer import update

ONE_STEP = {"train_batch_size": 16, "micro_train_batch_size": 3, "max_steps": 3, "logprob_gap_prompts": 1, "engine_type": "hf"}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"policy_loss": "gspo", "loss_aggregation": "sequence_mean"}, {"temperature": 0.7}])
def test_one_update_per_rollout_needs_no_old_log_probs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    short = make_trainer(tmp_path / "short", **ONE_STEP | changes)
    short.fit()
    for module in (batching, scorer, update):
        monkeypatch.setattr(module, "needs_old_logprobs", lambda *_, **__: True)
    long = make_trainer(tmp_path / "long", **ONE_STEP | changes)
    long.fit()
    for mine, theirs in zip(short.actor.parameters(), long.actor.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    known = ("train/", "rollout/reward", "rollout/entropy")
    for one, other in zip(rows(tmp_path / "short"), rows(tmp_path / "long"), strict=True):
        names = [name for name in other if name.startswith(known)]
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-6, abs=1e-9)
        # The gap's samples alone are scored in other micro-batches, which float32 rounds otherwise.
        assert one.get("rollout/logprob_gap", 0.0) == pytest.approx(other.get("rollout/logprob_gap", 0.0), abs=1e-6)
    assert bool(short.experience.old_logprobs[short.experience.loss_mask].isnan().all())
    assert not bool(long.experience.old_logprobs.isnan().any())


@pytest.mark.parametrize(
    ("changes", "num_steps", "needed"),
    [
        ({}, 1, False),
        ({}, 2, True),
        ({"max_epochs": 2}, 1, True),
        ({"kl_coef": 0.1}, 1, True),
        ({"logprob_gap_action": "correct", "logprob_gap_prompts": 2}, 1, True),
    ],
)
def test_when_they_are_needed(tmp_path: Path, changes: dict[str, Any], num_steps: int, needed: bool) -> None:
    config = make_trainer(tmp_path, engine_type="hf", **changes).config
    assert batching.needs_old_logprobs(config, num_steps=num_steps) is needed


def test_the_ratio_of_a_first_step_is_exactly_1_though_others_are_scored_in_other_micro_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, train_batch_size=8, micro_train_batch_size=3, micro_rollout_batch_size=5, kl_coef=0.1)
    trainer.fit()
    assert [row["train/first_ratio_error"] for row in rows(tmp_path) if "train/first_ratio_error" in row] == [0.0, 0.0]
