"""The rows of a run are kept whole in little memory, and come back as they were."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from lightrft.run.metric_rows import MetricRows

ROWS = [
    {"step": 0.0, "eval/reward": 0.25},
    {"step": 1.0, "b": 2.0, "a": math.inf},
    {"step": 2.0, "a": 3.0, "b": -1.0},
    {"step": 3.0, "b": 1.0, "a": 0.1},
]


def rows_of(given: list[dict[str, float]]) -> MetricRows:
    rows = MetricRows()
    for row in given:
        rows.append(row)
    return rows


def test_rows_are_a_sequence_in_their_order_and_with_their_names() -> None:
    rows = rows_of(ROWS)
    assert [*rows] == ROWS and len(rows) == 4 and rows[-1] == ROWS[3] and rows[1:3] == ROWS[1:3] and [*reversed(rows)] == ROWS[::-1]
    assert list(rows[2]) == ["step", "a", "b"]
    with pytest.raises(IndexError):
        rows[4]
    assert [*MetricRows()] == []


def test_their_state_is_a_copy_and_becomes_the_same_rows() -> None:
    rows = rows_of(ROWS)
    state = rows.state_dict()
    rows.append({"step": 4.0})
    again = rows_of([{"other": 1.0}])
    again.load_state_dict(state)
    assert [*again] == ROWS
    again.append({"step": 9.0, "a": 1.0, "b": 2.0})
    assert again[4] == {"step": 9.0, "a": 1.0, "b": 2.0} and len(again.state_dict()["names"]) == 3
    again.load_state_dict(MetricRows().state_dict())
    assert len(again) == 0


def test_a_row_takes_eight_bytes_a_number() -> None:
    """What a list of dicts takes is some 150: names that are made anew at each step, and the numbers themselves."""
    rows = MetricRows()
    tracemalloc.start()
    try:
        for step in range(2000):
            rows.append({f"metric/{number}": float(step) + number for number in range(70)})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2000 * 70 * 8 * 1.3 + 50_000
    assert rows[1999]["metric/69"] == 2068.0
