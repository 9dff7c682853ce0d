"""The contract of a logger, for plugins of kind `logger`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightrft.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class LoggerSetup:
    """What a logger is made from. `log_dir` exists; `total_steps` is the number of rollouts that the run will take; `rewards` are the names
    of the rewards, as in the metrics `reward/NAME`.
    """

    log_dir: Path
    config: Config
    total_steps: int
    rewards: tuple[str, ...] = ()


class Logger(Protocol):
    """Lives on rank 0 only, so no method may be collective.

    Metrics have names like `rollout/reward` and plain finite or non-finite floats; any of them may be missing in any step, and unknown
    ones may come. Steps do not decrease; one step may be logged in several calls.
    """

    def __init__(self, setup: LoggerSetup) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step. Must not keep or change `metrics`."""
        ...

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes the completions of one rollout that `samples.jsonl` keeps (`save_samples`), with its keys; after `log` of the same step.
        A logger may lack this method.
        """
        ...

    def rewind(self, step: int) -> None:
        """Takes out what was logged of later steps: a run that was stopped goes on after `step` and will log them again. Called at most
        once, before the first `log`. A logger may lack this method; the run then says that its later steps come twice.
        """
        ...

    def close(self) -> None:
        """Writes out what is left; called once, also after an error in the run."""
        ...


SAMPLE_COLUMNS = ("prompt", "completion", "answer", "reward", "num_tokens", "finish_reason")
"""Of a table of samples."""


def sample_table(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The values of `SAMPLE_COLUMNS` of each row. An answer is text: a column of a table has one type."""
    return [["" if row[name] is None else str(row[name]) if name == "answer" else row[name] for name in SAMPLE_COLUMNS] for row in rows]


def run_name(setup: LoggerSetup) -> str:
    """What a run is called where runs have names: as its folder."""
    return Path(setup.config.output_dir).name


def kept_id(path: Path) -> str:
    """An id that was drawn once and is kept in this file, by which a resumed run is the same one."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def say_it_keeps(library: str, step: int) -> None:
    """The `rewind` of a logger whose library cannot take a value back: those of later steps stay beside the new ones, which is said."""
    print(f"resume: {library} keeps what the stopped run logged after step {step}, which it cannot take back", flush=True)
