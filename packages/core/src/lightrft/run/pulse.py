"""Whether a run goes on, is slow, or stands still: from what it wrote, when, and how long its own rollouts have taken. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightrft.run.lock import Owner, owner_of
from lightrft.run.run_data import RunData

State = Literal["starting", "running", "stalled", "ended", "failed"]
LOGS = ("metrics.jsonl", "samples.jsonl", "warnings.jsonl", "distributions.jsonl", "eval_samples-*.jsonl")
PATIENCE, LEAST_S = 3.0, 60.0
"""A run may be silent for so many times its longest rollout, and for so many seconds in any case."""


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """`text` says the state in a sentence. `silent_s`: seconds since the run last wrote (None: nothing yet); `limit_s`: from how many on
    that is no slowness any more (None: too few rollouts to tell).
    """

    state: State
    text: str
    silent_s: float | None
    limit_s: float | None

    @property
    def goes_on(self) -> bool:
        """Whether more may come."""
        return self.state in ("starting", "running", "stalled")


def pulse(run: RunData, *, now: float) -> Pulse:
    """The state of a run at `now`, in seconds of `time.time()`."""
    owner = owner_of(run.folder)
    last = max(_written(run), default=None)
    silent_s = None if last is None else max(now - last, 0.0)
    limit_s, longest_s = _limit(run)
    state, text = _told(run, owner, silent_s, limit_s, longest_s)
    return Pulse(state=state, text=text, silent_s=silent_s, limit_s=limit_s)


def _told(run: RunData, owner: Owner | None, silent_s: float | None, limit_s: float | None, longest_s: float) -> tuple[State, str]:
    if owner is None or owner.is_here_and_gone:
        return _after_its_end(run, owner)
    ago = "nothing was written yet" if silent_s is None else f"last written {seconds(silent_s)} ago"
    if limit_s is None:
        return "starting", f"running ({owner}); {ago}; two rollouts will tell how long one takes"
    assert silent_s is not None
    if silent_s > limit_s:
        return "stalled", (
            f"stalled, not slow: nothing was written for {seconds(silent_s)}, and the longest rollout with its update took "
            f"{seconds(longest_s)}; the ranks of {owner} wait for something: see its output, and failure.txt if it ends"
        )
    return "running", f"running ({owner}); {ago}; the longest rollout with its update took {seconds(longest_s)}"


def _after_its_end(run: RunData, owner: Owner | None) -> tuple[State, str]:
    if run.summary:
        return "ended", run.state
    place = run.folder / "failure.txt"
    where = "; failure.txt says why" if place.is_file() else ""
    who = f" ({owner})" if owner is not None else ""
    return "failed", f"ended without a summary{who}: failed or killed{where}; go on with --resume_from latest, where it saved checkpoints"


def _written(run: RunData) -> Iterator[float]:
    """When each file of the run was written last."""
    logs = Path(run.config.get("log_dir") or run.folder).expanduser()
    files = [found for name in LOGS for found in logs.glob(name)]
    for path in [*files, *(run.folder / "checkpoints").glob("*")]:
        try:
            yield path.stat().st_mtime
        except FileNotFoundError:  # taken away in between
            continue


def _limit(run: RunData) -> tuple[float | None, float]:
    """From how many silent seconds on the run stands still, and its longest rollout; None before there are two."""
    took = [value for _, value in run.series("time/step_s")]
    if len(took) < 2:
        return None, max(took, default=0.0)
    return max(PATIENCE * max(took), LEAST_S), max(took)


def seconds(value: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
