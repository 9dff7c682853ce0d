"""A run ends when its metric has stalled, or when a callback says so; whole, and the same after a resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.checks import check
from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.run.checkpoint_folder import folder_of, saved_in
from lightrft.testing import run_spmd
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer import SPMDPPOTrainer
from lightrft.trainer.early_stop import EarlyStop


def stop_of(**settings: Any) -> EarlyStop:
    return EarlyStop(make_config({"strategy": "single", "engine_type": "hf", "best_metric": "rollout/reward", **settings}))


@pytest.mark.parametrize(
    ("mode", "values", "ends_at"),
    [
        ("max", [0.1, 0.2, 0.2, 0.15, 0.3], None),
        ("max", [0.1, 0.2, 0.2, 0.15, 0.1, 0.3], 4),
        ("max", [0.5, 0.4, 0.3, 0.2], 3),
        ("min", [0.5, 0.4, 0.6, 0.6, 0.4], 4),
        ("min", [0.5, 0.4, 0.3, 0.2], None),
        ("max", [0.5, math.nan, math.nan, math.nan, 0.4, 0.4], None),  # not measured
    ],
)
def test_three_measurements_in_a_row_without_a_better_one(mode: str, values: list[float], ends_at: int | None) -> None:
    stop = stop_of(early_stop_patience=3, best_mode=mode)
    found = None
    for step, value in enumerate(values):
        stop.observe(step, {"rollout/reward": value})
        found = step if found is None and stop.reason else found
    assert found == ends_at


def test_without_patience_and_without_the_metric_it_never_ends() -> None:
    never, other = stop_of(), stop_of(early_stop_patience=1)
    for step in range(9):
        never.observe(step, {"rollout/reward": 0.0})
        other.observe(step, {"eval/reward": 0.0})
    assert never.reason == other.reason == ""


def falling(values: Sequence[float]) -> Any:
    """A phase that evaluates to the next of these values."""
    left = iter(values)

    def evaluate(trainer: SPMDPPOTrainer) -> None:
        trainer.metrics["eval/reward"] = next(left)

    return {"evaluate": evaluate}


EVERY: dict[str, Any] = dict(max_steps=9, num_episodes=9, eval_every=1, save_every=1, keep_checkpoints=0)


def test_a_stalled_run_ends_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = EVERY | {"save_every": 5, "early_stop_patience": 2}
    trainer = make_trainer(tmp_path, phases=falling([0.1, 0.3, 0.2, 0.3, 0.9]), **settings)
    summary = trainer.fit()
    why = "eval/reward has not come above 0.3, its value at rollout 1, in 2 measurements (early_stop_patience=2)"
    assert (summary["steps"], summary["stopped"], summary["ended_early"]) == (3, "", why)
    assert f"the run ends at rollout 3 of 9: {why}" in capsys.readouterr().out
    assert (Path(summary["model_dir"]) / "model.safetensors").is_file()
    assert [one.step for one in saved_in(tmp_path / "run")] == [3], "its last step is saved, as that of any run"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended_early"] == why


def test_patience_is_counted_on_after_a_resume(tmp_path: Path) -> None:
    values = [0.5, 0.1, 0.1, 0.1, 0.1]
    make_trainer(tmp_path, phases=falling(values), early_stop_patience=3, **EVERY | {"max_steps": 2}).fit()
    resume = EVERY | {"resume_from": str(folder_of(tmp_path / "run", 2)), "early_stop_patience": 3}
    summary = make_trainer(tmp_path / "other", phases=falling(values[3:]), **resume).fit()
    assert summary["steps"] == 3 and summary["ended_early"]
    again = make_trainer(
        tmp_path / "third", phases=falling([]), **resume | {"resume_from": str(folder_of(tmp_path / "other" / "run", 3))}
    ).fit()
    assert again["steps"] == 3 and again["ended_early"] == summary["ended_early"], "a run that has ended ends at once"


def test_callbacks_see_every_rollout_and_may_end_the_run(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def enough(trainer: SPMDPPOTrainer) -> str | None:
        seen.append((trainer.step, "rollout/reward" in trainer.metrics))
        return "two are enough" if trainer.step == 2 else None

    summary = make_trainer(tmp_path, callbacks=[enough], **EVERY).fit()
    assert seen == [(1, True), (2, True)]
    assert (summary["steps"], summary["ended_early"]) == (2, "enough: two are enough")


def test_a_callback_that_raises_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    def breaks(trainer: SPMDPPOTrainer) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        make_trainer(tmp_path, callbacks=[breaks]).fit()
    assert Path(__file__).name in [entry.path.name for entry in caught.traceback][-1]


def answers(trainer: SPMDPPOTrainer) -> str | None:
    return "enough" if trainer.step == 2 and trainer.strategy.world.rank == 1 else None


def breaks_on_rank_1(trainer: SPMDPPOTrainer) -> None:
    if trainer.step == 2 and trainer.strategy.world.rank == 1:
        raise ZeroDivisionError("mine")


def on_ranks(folder: Path, changes: dict[str, Any]) -> tuple[int, str]:
    """The last step of this rank's run, and why it ended."""
    if "early_stop_patience" in changes:
        changes = changes | {"phases": falling([0.5, 0.6, 0.4, 0.4, 0.9])}
    settings = EVERY | {"strategy": "sharded", "output_dir": str(folder / "run"), "micro_train_batch_size": 2}
    trainer = make_trainer(folder / os.environ["RANK"], **settings | changes)
    try:
        reason = str(trainer.fit()["ended_early"])
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    return trainer.step, reason


STALLED = "eval/reward has not come above 0.6, its value at rollout 1, in 2 measurements (early_stop_patience=2)"
PEER = "PeerError: calling breaks_on_rank_1 failed on rank 1 of its group: ZeroDivisionError: mine"


@pytest.mark.parametrize(
    ("changes", "step", "reasons"),
    [
        ({"callbacks": [answers]}, 2, ["answers: enough"] * 2),
        ({"early_stop_patience": 2}, 3, [STALLED] * 2),
        ({"callbacks": [breaks_on_rank_1]}, 2, [PEER, "ZeroDivisionError: mine"]),
    ],
    ids=["answer on rank 1", "patience", "error on rank 1"],
)
def test_two_ranks_end_alike_and_save_their_last_step(tmp_path: Path, changes: dict[str, Any], step: int, reasons: list[str]) -> None:
    found = run_spmd(on_ranks, 2, tmp_path, changes)
    assert found == [(step, reason) for reason in reasons]
    assert [one.step for one in saved_in(tmp_path / "run")] == list(range(1, step + 1))


def test_a_metric_that_is_never_measured_is_refused() -> None:
    config = make_config({"strategy": "fake", "engine_type": "fake", "early_stop_patience": 2})
    with pytest.raises(ConfigError) as caught:
        check(config, registry=fake_registry(), world_size=1)
    assert "best_metric='eval/reward': it needs eval_data, which is not set" in caught.value.problems
