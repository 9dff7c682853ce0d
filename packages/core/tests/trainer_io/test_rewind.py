"""After a resume every log is as it was at the checkpoint: no step twice, whatever its texts hold and however its end was torn."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightrft.config import make_config
from lightrft.plugins.registry import Registry
from lightrft.run.loggers import LoggerSetup
from lightrft.run.rewind import rewind_logs
from lightrft.testing.small_trainer import make_trainer, odd_tokens


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_separator_of_lines_inside_of_a_text_is_none(separator: str, tmp_path: Path) -> None:
    rows = [{"step": step, "completion": f"a{separator}b"} for step in (1, 2, 2, 3, 4)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name in ("samples.jsonl", "warnings.jsonl", "distributions.jsonl"):
        (tmp_path / name).write_text(lines + '{"step": 5, "complet', encoding="utf-8")
    rewind_logs(tmp_path, [{"step": 2.0}], keeps_metrics=True)
    for name in ("samples.jsonl", "warnings.jsonl", "distributions.jsonl"):
        assert steps_of(tmp_path / name) == [1, 2, 2], name


def scalars(folder: Path) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is missing")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars("rollout/reward")]


def test_tensorboard_forgets_later_steps_also_of_several_files_and_a_torn_end(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is missing")
    made = Registry.discover().load("logger", "tensorboard")
    setup = LoggerSetup(log_dir=tmp_path, config=make_config({}), total_steps=9)
    for first in (1, 4):
        logger = made(setup)
        for step in range(first, first + 3):
            logger.log(step, {"rollout/reward": step / 10})
        logger.close()
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-7])
    resumed = made(setup)
    resumed.rewind(4)
    for step in (5, 6):
        resumed.log(step, {"rollout/reward": 9.0})
    resumed.close()
    found = scalars(tmp_path)
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6] and [value for _, value in found][-2:] == [9.0, 9.0]


def test_a_run_that_fails_and_goes_on_logs_no_step_twice_anywhere(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is missing")
    calls: list[int] = []

    def fails(samples: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("the disk of the judge is full")
        return odd_tokens(samples)

    changes: dict[str, Any] = dict(max_steps=6, save_every=2, save_samples=3, eval_prompts=(), loggers=["jsonl", "tensorboard"])
    with pytest.raises(Exception, match="the disk of the judge is full"):
        make_trainer(tmp_path, reward=fails, **changes).fit()
    make_trainer(tmp_path, resume_from=str(tmp_path / "run" / "checkpoints" / "step-2"), **changes).fit()
    assert steps_of(tmp_path / "run" / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert Counter(steps_of(tmp_path / "run" / "samples.jsonl")) == dict.fromkeys(range(1, 7), 3)
    assert [step for step, _ in scalars(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


class Forgetless:
    def __init__(self, setup: LoggerSetup) -> None: ...

    def log(self, step: int, metrics: Any) -> None: ...

    def close(self) -> None: ...


def test_a_logger_that_cannot_rewind_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, max_steps=2, save_every=1, eval_prompts=()).fit()
    trainer = make_trainer(tmp_path, max_steps=3, eval_prompts=(), resume_from=str(tmp_path / "run" / "checkpoints" / "step-1"))
    trainer.report.loggers = [Forgetless(None)]  # type: ignore[arg-type]
    trainer.begin()
    assert "resume: logger 'jsonl' has no `rewind`: what it holds of steps after 1 will be there twice" in capsys.readouterr().out
