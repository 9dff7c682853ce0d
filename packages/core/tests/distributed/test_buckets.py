"""Buckets are bounded, in order and complete; tied weights keep all their names."""

from __future__ import annotations

import pytest
from torch import nn

from lightrft.weights.buckets import in_buckets, tied_names


@pytest.mark.parametrize(
    ("sizes", "max_bytes", "expected"),
    [
        ([3, 3, 3], 6, [[0, 1], [2]]),
        ([3, 3, 3], 5, [[0], [1], [2]]),
        ([1, 9, 1, 1], 4, [[0], [1], [2, 3]]),  # larger than the bound: a bucket of its own
        ([9], 4, [[0]]),
        ([0, 4, 0], 4, [[0, 1, 2]]),
        ([], 4, []),
    ],
)
def test_cutting_by_bytes(sizes: list[int], max_bytes: int, expected: list[list[int]]) -> None:
    assert list(in_buckets(enumerate(sizes), max_bytes=max_bytes)) == expected


def test_tied_names_itself_first() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2, bias=False)})
    model["c"].weight = model["a"].weight
    assert tied_names(model) == {"a.weight": ("a.weight", "c.weight"), "b.weight": ("b.weight",)}
