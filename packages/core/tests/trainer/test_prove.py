"""`lightrft prove-resume`: what is run again, and that every difference between a run and its replay is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.cli.prove import print_report
from lightrft.errors import CheckpointError, RunFolderError
from lightrft.run.checkpoint_folder import folder_of
from lightrft.testing.small_trainer import make_trainer
from lightrft.trainer.prove import compare, config_of, plan_replay

CHANGES: dict[str, Any] = dict(max_steps=4, save_every=2, keep_checkpoints=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rollouts with checkpoints of 2 and 4; `again` beside it goes on from the first, and is the same."""
    folder = tmp_path_factory.mktemp("prove")
    trainer = make_trainer(folder, **CHANGES)
    trainer.fit()
    (folder / "run" / "config.yaml").write_text(json.dumps(trainer.config.model_dump()))
    replay = plan_replay(folder / "run")
    config = config_of(replay, folder / "again" / "run")
    changed = {name: value for name, value in config.model_dump().items() if value != trainer.config.model_dump()[name]}
    make_trainer(folder / "again", **CHANGES | changed).fit()
    return folder / "run"


def test_by_default_the_part_between_the_last_two_checkpoints_is_run_again(run: Path) -> None:
    replay = plan_replay(run)
    assert (replay.begin.step, replay.until, replay.world_size) == (2, 4, 1)
    assert (plan_replay(run, begin=2, until=3).until) == 3
    config = config_of(replay, run.parent / "again" / "run")
    before = replay.config.model_dump()
    assert {name for name, value in config.model_dump().items() if value != before[name]} <= {
        "output_dir", "log_dir", "loggers", "plot_every", "resume_from", "save_every", "save_every_minutes",
        "keep_checkpoints", "keep_best",
    }  # fmt: skip


def test_a_replay_that_is_the_run_is_told_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(plan_replay(run), run.parent / "again" / "run")
    assert found["same"] and found["differences"] == [] and found["files"] >= 1 and found["metrics"] > 40, found
    print_report(found)
    assert "with all other state, compared; the resumed run is bitwise the run" in capsys.readouterr().out


def changed_metric(again: Path) -> None:
    path = again / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    next(row for row in rows if row["step"] == 4)["train/loss"] += 1e-9
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def changed_state(again: Path) -> None:
    path = folder_of(again, 4) / "actor" / "extra.pt"
    extra = torch.load(path, weights_only=True)
    extra["client_state"]["sampler"] = {"other": 1}
    torch.save(extra, path)


def changed_weights(again: Path) -> None:
    path = folder_of(again, 4) / "actor" / "manifest.json"
    about = json.loads(path.read_text())
    name = next(name for name in about["files"] if name != "extra.pt")
    about["files"][name] = "0" * 64
    path.write_text(json.dumps(about))


def missing_row(again: Path) -> None:
    path = again / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if json.loads(line)["step"] != 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_metric, "step 4: train/loss is "),
        (changed_state, "actor: client_state.sampler"),
        (changed_weights, "is not the same"),
        (missing_row, "step 3: not in the replay's metrics.jsonl"),
    ],
)
def test_every_difference_is_told(run: Path, tmp_path: Path, change: Any, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "run"
    shutil.copytree(run.parent / "again" / "run", again)
    change(again)
    found = compare(plan_replay(run), again)
    assert not found["same"] and any(words in line for line in found["differences"]), found["differences"]
    print_report(found)
    assert "the resumed run is NOT the run" in capsys.readouterr().out


def test_within_a_bound_metrics_alone_decide(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "run"
    shutil.copytree(run.parent / "again" / "run", again)
    changed_metric(again)
    changed_weights(again)
    found = compare(plan_replay(run), again, within=1e-3)
    assert found["same"] and len(found["state"]) == 1
    print_report(found)
    assert "within 0.001 of the run's; 1 parts of the state differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("begin", "until", "words"),
    [
        (3, None, "no checkpoint of step 3 in .*; there are 2, 4"),
        (4, None, "nothing to compare from step 4 to step 4: the run's last step is 4"),
        (2, 9, "nothing to compare from step 2 to step 9"),
        (4, 2, "nothing to compare from step 4 to step 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Path, begin: int, until: int | None, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        plan_replay(run, begin=begin, until=until)


def test_no_run_and_no_checkpoint_are_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        plan_replay(tmp_path)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(CheckpointError, match="no checkpoint in .*save one with --save_every"):
        plan_replay(tmp_path / "run")
