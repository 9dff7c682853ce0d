"""Runs that go on by themselves after a failure: from the newest whole checkpoint, and never on and on over one error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightrft.config.schema import Config
from lightrft.distributed.failure import RankFailure
from lightrft.distributed.launch import LaunchResult
from lightrft.run.checkpoint_folder import saved_in
from lightrft.run.run_folder import CONFIG_FILE, append_failure
from lightrft.trainer.preflight import Mode

COUNTED_BY = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""How often torchrun, or Slurm by a requeue, has started this job again."""


def started_again() -> bool:
    """Whether torchrun or Slurm has started this job before."""
    return any(os.environ.get(name, "0").isdigit() and int(os.environ.get(name, "0")) > 0 for name in COUNTED_BY)


def keep_going(start: Callable[[dict[str, Any]], LaunchResult], config: Config, *, mode: Mode, most: int) -> None:
    """Calls `start` with the settings of a run until it ends well; a training that fails goes on in its folder up to `most` times.

    Raises:
        SystemExit: it failed, and is not started again; both have been told.
    """
    values, run, restarts = config.model_dump(), Path(config.output_dir).expanduser(), Restarts(most=most)
    while (result := start(values)).exit_code:
        if result.cause is not None and mode == "train" and result.cause.kind != "user":
            append_failure(run, result.cause.text(with_traceback=True))
        refused = restarts.refused(result.cause, run=run)
        if refused is not None:
            print(refused, end="\n" if refused else "", file=sys.stderr, flush=True)
            raise SystemExit(result.exit_code)
        print(restarts.sentence(run=run), file=sys.stderr, flush=True)
        values = going_on(values, run=run)


def going_on(values: Mapping[str, Any], *, run: Path) -> dict[str, Any]:
    """The settings with which a run goes on in its folder: from its newest checkpoint, or anew where it has saved none."""
    if saved_in(run):
        return {**values, "resume_from": "latest", "overwrite_output_dir": False}
    if (run / CONFIG_FILE).exists():
        return {**values, "overwrite_output_dir": True}
    return dict(values)


@dataclass
class Restarts:
    """How many restarts are left, and whether the last failure was one that a restart would only meet again."""

    most: int
    done: int = 0
    _last: tuple[str, int] | None = field(default=None, repr=False)

    def refused(self, cause: RankFailure | None, *, run: Path) -> str | None:
        """Why the run is not started again after this failure, else None. A signal (no cause) and a user's error are never repeated."""
        if cause is None or cause.kind == "user" or not self.most:
            return ""
        step = newest_step(run)
        here = (re.sub(r"\d+", "#", cause.message), step)
        repeats = here == self._last and cause.kind in ("error", "exited")
        self._last = here
        if repeats:
            return f"not restarted: the same error came again with nothing new saved (newest checkpoint: {_named(step)})"
        if self.done >= self.most:
            return f"not restarted: all {self.most} restarts (--max-restarts) are used"
        self.done += 1
        return None

    def sentence(self, *, run: Path) -> str:
        """What is told of a restart."""
        step = newest_step(run)
        where = f"going on from step {step}" if step >= 0 else "from the beginning, nothing was saved yet"
        return f"restart {self.done} of {self.most}: {where}"


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; -1 without any."""
    saved = saved_in(run)
    return saved[-1].step if saved else -1


def _named(step: int) -> str:
    return f"step {step}" if step >= 0 else "none"
