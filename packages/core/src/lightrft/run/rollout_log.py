"""What is kept of a rollout itself? A few completions of each, and now and then how lengths and rewards are distributed. Rank 0 alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.experience.trajectory import Trajectory

SAMPLES_FILE, DISTRIBUTIONS_FILE = "samples.jsonl", "distributions.jsonl"
TEXT_CHARS = 8000
"""Of a longer prompt or completion the end is kept, where the answer stands."""


def chosen(experience: Sequence[Trajectory], number: int) -> list[Trajectory]:
    """The best, the worst and the median completion by reward, then others spread evenly over the ranks of rewards; none twice."""
    ordered = sorted(experience, key=lambda trajectory: -trajectory.reward)
    last = len(ordered) - 1
    places = [0, last, last // 2, *(last * i // max(number - 1, 1) for i in range(number)), *range(len(ordered))]
    return [ordered[place] for place in dict.fromkeys(places) if 0 <= place <= last][:number]


def append_samples(folder: Path, step: int, experience: Sequence[Trajectory], *, number: int) -> None:
    """Lines of `samples.jsonl`: `number` completions of this rank's share."""
    rows = [_row(step, trajectory) for trajectory in chosen(experience, number)]
    _append(folder / SAMPLES_FILE, rows)


def append_distributions(folder: Path, step: int, *, lengths: Sequence[int], rewards: Sequence[float]) -> None:
    """A line of `distributions.jsonl`: how many completions have each length (tokens) and each reward, as pairs."""
    counts: dict[str, Any] = {"step": step}
    for name, values in (("lengths", Counter(lengths)), ("rewards", Counter(round(value, 6) for value in rewards))):
        counts[name] = sorted([value, number] for value, number in values.items())
    _append(folder / DISTRIBUTIONS_FILE, [counts])


def _row(step: int, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": trajectory.sample.prompt[-TEXT_CHARS:],
        "completion": trajectory.sample.completion[-TEXT_CHARS:],
        "answer": trajectory.sample.answer,
        "reward": trajectory.reward,
        "num_tokens": trajectory.num_tokens,
        "finish_reason": trajectory.completion.finish_reason,
    }


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
