"""The completions of an evaluation that tell most: a few of the best, the median and the worst. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
SHOWN = 2


def best_worst_median(rows: Sequence[Row], *, each: int = SHOWN) -> dict[str, list[Row]]:
    """A few completions of each kind, by reward; no completion comes twice."""
    ordered = sorted(rows, key=lambda row: -float(row["reward"]))
    middle = max(len(ordered) // 2 - each // 2, each)
    return {"best": ordered[:each], "median": ordered[middle : middle + each], "worst": ordered[max(middle + each, len(ordered) - each) :]}
