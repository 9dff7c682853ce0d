"""When a run that failed goes on by itself, from where, and when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightrft.cli import ray_launch, start
from lightrft.cli.restart import Restarts, going_on, started_again
from lightrft.config.load import make_config, read_recipe
from lightrft.distributed.failure import RankFailure, first_cause
from lightrft.distributed.launch import LaunchResult
from lightrft.run.checkpoint_folder import folder_of, seal


def failure(kind: str = "error", message: str = "ValueError: row 17") -> RankFailure:
    return RankFailure(rank=1, time_ns=0, kind=kind, message=message)  # type: ignore[arg-type]


def save(run: Path, step: int) -> None:
    folder_of(run, step).mkdir(parents=True)
    seal(folder_of(run, step), {"step": step, "config": {}})


def test_a_run_goes_on_from_its_newest_checkpoint_or_begins_anew(tmp_path: Path) -> None:
    assert going_on({"seed": 1}, run=tmp_path) == {"seed": 1}
    (tmp_path / "config.yaml").touch()
    assert going_on({"resume_from": "elsewhere"}, run=tmp_path) == {"resume_from": "elsewhere", "overwrite_output_dir": True}
    save(tmp_path, 4)
    assert going_on({"overwrite_output_dir": True}, run=tmp_path) == {"resume_from": "latest", "overwrite_output_dir": False}


def test_an_error_that_repeats_at_one_step_is_not_met_again(tmp_path: Path) -> None:
    restarts = Restarts(most=9)
    assert restarts.refused(failure(), run=tmp_path) is None
    assert restarts.sentence(run=tmp_path) == "restart 1 of 9: from the beginning, nothing was saved yet"
    save(tmp_path, 2)
    assert restarts.refused(failure(message="ValueError: row 18"), run=tmp_path) is None, "something was saved in between"
    assert restarts.sentence(run=tmp_path) == "restart 2 of 9: going on from step 2"
    refused = restarts.refused(failure(message="ValueError: row 19"), run=tmp_path)
    assert refused == "not restarted: the same error came again with nothing new saved (newest checkpoint: step 2)"


def test_killed_ranks_are_started_again_as_often_as_was_asked(tmp_path: Path) -> None:
    restarts = Restarts(most=2)
    for kind in ("killed", "hung"):
        assert restarts.refused(failure(kind, "was killed by SIGKILL"), run=tmp_path) is None
    assert restarts.refused(failure("killed"), run=tmp_path) == "not restarted: all 2 restarts (--max-restarts) are used"


def test_signals_and_errors_of_the_user_end_the_run(tmp_path: Path) -> None:
    assert Restarts(most=5).refused(None, run=tmp_path) == ""
    assert Restarts(most=5).refused(failure("user"), run=tmp_path) == ""
    assert Restarts(most=0).refused(failure("killed"), run=tmp_path) == ""


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_torchrun_and_slurm_say_that_they_have_started_a_job_again(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for count, expected in (("0", False), ("1", True), ("", False)):
        monkeypatch.setenv(name, count)
        assert started_again() is expected


def test_the_command_starts_the_ranks_again_with_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seen = tmp_path / "run", []

    def launched(command: list[str], *, nproc_per_node: int, grace_s: float) -> LaunchResult:
        config = make_config(read_recipe(command[4]))
        seen.append((config.resume_from, config.overwrite_output_dir, grace_s))
        if len(seen) == 1:
            run.mkdir()
            (run / "config.yaml").touch()
        if len(seen) == 2:
            save(run, 6)
        if len(seen) < 3:
            return LaunchResult(exit_code=1, cause=failure("killed", "was killed by SIGKILL"))
        Path(command[5]).write_text(json.dumps({"steps": 9}))
        return LaunchResult(exit_code=0)

    monkeypatch.setattr(start, "launch", launched)
    config = make_config({"output_dir": str(run), "stop_grace_s": 7})
    assert start.start_ranks(config, mode="train", nproc_per_node=2, max_restarts=3) == {"steps": 9}
    assert seen == [("", False, 7.0), ("", True, 7.0), ("latest", False, 7.0)]
    assert capsys.readouterr().err.splitlines() == [
        "restart 1 of 3: from the beginning, nothing was saved yet",
        "restart 2 of 3: going on from step 6",
    ]


def test_a_rank_that_ends_with_0_before_the_end_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(start, "launch", lambda *_, **__: LaunchResult(exit_code=0))
    with pytest.raises(SystemExit) as ended:
        start.start_ranks(make_config({}), mode="train", nproc_per_node=1)
    assert ended.value.code == 1 and "has ended its process (os._exit)" in capsys.readouterr().err


class ActorDiedError(Exception):
    """As Ray says it of a worker that is gone."""


def test_workers_of_ray_that_are_gone_count_as_killed_and_those_that_raised_as_what_they_raised() -> None:
    lost = ActorDiedError("The actor died.\nIts process was killed.")
    both = type("WorkerGroupError", (Exception,), {"worker_failures": {0: RuntimeError("Connection closed by peer"), 1: lost}})()
    assert [(one.rank, one.kind, one.message) for one in ray_launch._failures(both)] == [
        (0, "peer", "RuntimeError: Connection closed by peer"),
        (1, "killed", "was lost: Its process was killed."),
    ]
    assert first_cause(ray_launch._failures(both)).rank == 1
