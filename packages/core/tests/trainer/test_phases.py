"""Each phase of a step is measured; a subclass or a function can stand for one."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.batch.stages import Rewarded, Sampled, Scored, Trainable
from lightrft.observe.phase_clock import PHASES, PhaseClock
from lightrft.testing.fake_strategy import FakeStrategy
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer import SPMDPPOTrainer


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_step_logs_time_tokens_and_memory_of_each_phase(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit()
    row = next(row for row in logged(tmp_path) if row["step"] == 2)
    in_a_step = [name for name in PHASES if name != "evaluate"]
    assert all(row[f"time/{name}_s"] >= 0 and row[f"memory/{name}_gib"] > 0 for name in in_a_step)
    assert row["tokens/rollout"] == row["tokens/reward"] == int(trainer.experience.loss_mask.sum())
    assert row["tokens/update"] == row["tokens/logprob"] == len(trainer.experience.token_ids)
    assert row["rollout/tokens_per_s"] == pytest.approx(row["tokens/rollout"] / row["time/rollout_s"])
    assert sum(row[f"time/{name}_s"] for name in in_a_step) <= row["time/step_s"]


class HalfReward(SPMDPPOTrainer):
    """Overrides one phase."""

    def reward(self, experience: Sampled) -> Rewarded:
        rewarded = super().reward(experience)
        return replace(rewarded, rewards=rewarded.rewards / 2)


def test_a_subclass_overrides_a_phase_which_is_measured_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, cls=HalfReward)
    trainer.fit()
    assert set(trainer.experience.rewards.tolist()) <= {0.0, 0.5}
    assert logged(tmp_path)[1]["tokens/reward"] == logged(tmp_path)[1]["tokens/rollout"], "the phase and its super() count once"


def test_a_function_stands_for_a_phase_and_what_it_measures_is_logged(tmp_path: Path) -> None:
    def advantage(trainer: SPMDPPOTrainer, experience: Scored) -> Trainable:
        found = SPMDPPOTrainer.advantage(trainer, experience)
        trainer.metrics["mine/answer"] = 42.0
        return replace(found, advantages=torch.zeros_like(found.advantages))

    trainer = make_trainer(tmp_path, phases={"advantage": advantage})
    before = [p.detach().clone() for p in trainer.actor.parameters()]
    trainer.fit()
    assert [row["mine/answer"] for row in logged(tmp_path) if "rollout/reward" in row] == [42.0, 42.0]
    assert all((a == b).all() for a, b in zip(before, trainer.actor.parameters(), strict=True)), "no advantage, no change"


def test_an_unknown_phase_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown phase 'rewards'; did you mean 'reward'"):
        make_trainer(tmp_path, phases={"rewards": print})


def test_calls_of_a_step_add_up_and_a_phase_may_give_its_own_time(tmp_path: Path) -> None:
    strategy = make_trainer(tmp_path).strategy
    assert isinstance(strategy, FakeStrategy)
    clock = PhaseClock(strategy.world)
    clock.start()
    sleep = clock.measured("rollout", lambda: time.sleep(0.02))
    for _ in range(2):
        sleep()
    clock.measured("sync", lambda: {"time/sync_s": 5.0, "x": 1.0})()
    found = clock.close()
    assert 0.04 <= found["time/rollout_s"] <= found["time/step_s"] and found["time/sync_s"] == 5.0
    assert clock.metrics == {"time/sync_s": 5.0, "x": 1.0} and "tokens/rollout" not in found
    assert list(clock.ranks[0]) == ["rollout", "sync"] and clock.ranks[0]["sync"][1] == 5.0
    (begin, took), (later, _) = clock.ranks[0].values()
    assert begin >= 0 and took == found["time/rollout_s"] and later >= begin + took
    clock.start()
    assert clock.close().keys() == {"time/step_s"}, "a new step begins with nothing"
