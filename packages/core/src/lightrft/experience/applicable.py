"""Rewards that do not apply to a sample, counted: for each reward how often it said None, and completions that got nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightrft.observe.metrics import StepMetrics
from lightrft.rewards.score import Scores, not_applicable
from lightrft.types import Sample


def add_not_applicable(metrics: StepMetrics, scores: Scores, samples: Sequence[Sample], *, reward_key: str) -> None:
    """`not_applicable/NAME` and `rollout/unrewarded`, where they are not 0. Local."""
    none = not_applicable(scores, samples, reward_key=reward_key)
    bare = sum(all(values[index] is None for values in scores.parts.values()) for index in range(len(samples)))
    metrics.add("not_applicable", {name: float(count) for name, count in none.items()}, _named)
    metrics.add("unrewarded", {"bare": float(bare), "count": float(len(samples))}, _fraction)


def _named(total: Mapping[str, float]) -> dict[str, float]:
    return {f"not_applicable/{name}": count for name, count in total.items() if count}


def _fraction(total: Mapping[str, float]) -> dict[str, float]:
    return {"rollout/unrewarded": total["bare"] / total["count"]} if total["bare"] else {}
