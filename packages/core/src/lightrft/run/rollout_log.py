"""What is kept of a rollout itself: a few completions of each, and now and then how lengths and rewards are distributed. Rank 0 alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.batch.stages import Trainable
from lightrft.run.pictures import small_copies
from lightrft.run.token_rows import TextOf, token_rows
from lightrft.types import Sample

SAMPLES_FILE, DISTRIBUTIONS_FILE, PHASES_FILE = "samples.jsonl", "distributions.jsonl", "phases.json"
TEXT_CHARS = 8000
"""Of a longer prompt or completion the end is kept, where the answer stands."""


def chosen(rewards: Sequence[float], number: int) -> list[int]:
    """The places of the best, the worst and the median reward, then others spread evenly over the ranks of rewards; none twice."""
    number = min(number, len(rewards))
    ordered = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    last = len(ordered) - 1
    places = [0, last, last // 2, *(last * i // max(number - 1, 1) for i in range(number)), *range(len(ordered))]
    return [ordered[place] for place in dict.fromkeys(places) if 0 <= place <= last][:number]


def append_samples(folder: Path, step: int, experience: Trainable, *, number: int, text_of: TextOf) -> list[dict[str, Any]]:
    """Lines of `samples.jsonl`: `number` of this rank's completions, as texts and token by token. Returns them."""
    rewards = experience.rewards.tolist()
    rows = [
        _row(step, experience.samples[place], rewards[place]) | {"tokens": token_rows(experience, place, text_of=text_of)}
        for place in chosen(rewards, number)
    ]
    _append(folder / SAMPLES_FILE, rows)
    return rows


def append_distributions(folder: Path, step: int, *, lengths: Sequence[int], rewards: Sequence[float]) -> None:
    """A line of `distributions.jsonl`: how many completions have each length (tokens) and each reward, as pairs."""
    counts: dict[str, Any] = {"step": step}
    for name, values in (("lengths", Counter(lengths)), ("rewards", Counter(round(value, 6) for value in rewards))):
        counts[name] = sorted([value, number] for value, number in values.items())
    _append(folder / DISTRIBUTIONS_FILE, [counts])


def write_phases(folder: Path, step: int, ranks: Sequence[Mapping[str, tuple[float, float]]]) -> None:
    """`phases.json`, of the last rollout alone: where each phase of each rank began and how long it took, in seconds."""
    temporary = folder / f".{PHASES_FILE}.tmp"
    temporary.write_text(json.dumps({"step": step, "ranks": ranks}), encoding="utf-8")
    temporary.replace(folder / PHASES_FILE)


def _row(step: int, sample: Sample, reward: float) -> dict[str, Any]:
    row = {
        "step": step,
        "prompt": sample.prompt[-TEXT_CHARS:],
        "completion": sample.completion[-TEXT_CHARS:],
        "answer": sample.answer,
        "reward": reward,
        "num_tokens": sample.num_tokens,
        "finish_reason": sample.finish_reason,
    } | ({"images": small_copies(sample.images)} if sample.images else {})
    if sample.episode is None:
        return row
    turns = [{"by": speaker, "text": text[-TEXT_CHARS:]} for speaker, text in sample.episode.turns]
    return row | {"turns": turns, "environment": dict(sample.episode.rewards), "env_error": sample.episode.error}


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
