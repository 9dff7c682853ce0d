"""Rewards are summed with their weights; a reward function that misbehaves is named with its sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lightrft.errors import RewardError
from lightrft.rewards.load import NamedReward
from lightrft.rewards.score import score
from lightrft.types import Sample

SAMPLES = [Sample(prompt="p", completion=text) for text in ("a", "bb", "c" * 100)]


def reward(answer: Any, *, name: str = "r", weight: float = 1.0) -> NamedReward:
    def function(samples: Sequence[Sample]) -> Any:
        return answer(samples) if callable(answer) else answer

    return NamedReward(name=name, function=function, weight=weight)


def message(answer: Any) -> str:
    with pytest.raises(RewardError) as caught:
        score(SAMPLES, rewards=[reward(answer)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weighted_sum_by_hand() -> None:
    found = score(SAMPLES, rewards=[reward([1, 2, 3], name="x", weight=0.5), reward([10.0, 0.0, -10.0], name="y", weight=2.0)])
    assert found.total == [20.5, 1.0, -18.5]
    assert found.parts == {"x": [1.0, 2.0, 3.0], "y": [10.0, 0.0, -10.0]}


@pytest.mark.parametrize(
    "answer",
    [
        [True, False, True],
        (1, 0, 1),
        np.array([1, 0, 1]),
        np.array([True, False, True]),
        [np.float32(1), np.int64(0), np.bool_(True)],
        lambda s: (x for x in (1, 0, 1)),
    ],
)
def test_any_kind_of_number_is_fine(answer: Any) -> None:
    found = score(SAMPLES, rewards=[reward(answer)])
    assert found.parts["r"] == [1.0, 0.0, 1.0] and all(type(value) is float for value in found.total)


def test_no_samples_call_nothing() -> None:
    found = score([], rewards=[reward(lambda samples: 1 / 0)])
    assert found.total == [] and found.parts == {"r": []}


def test_no_rewards_are_worth_nothing() -> None:
    assert score(SAMPLES, rewards=[]).total == [0.0, 0.0, 0.0]


def test_a_function_that_changes_its_list_disturbs_nobody() -> None:
    def greedy(samples: list[Sample]) -> list[float]:
        return [float(len(samples.pop(0).completion)) for _ in range(3)]

    found = score(SAMPLES, rewards=[reward(greedy, name="x"), reward(lambda s: [len(x.completion) for x in s], name="y")])
    assert found.parts["x"] == found.parts["y"] == [1.0, 2.0, 100.0] and len(SAMPLES) == 3


def test_a_function_that_raises_is_named_and_chained() -> None:
    def fails(samples: Sequence[Sample]) -> list[float]:
        raise KeyError("no\nkey")

    with pytest.raises(RewardError) as caught:
        score(SAMPLES, rewards=[reward([1, 1, 1], name="good"), reward(fails, name="bad")])
    line = fails.__code__.co_firstlineno + 1
    assert str(caught.value) == f"reward 'bad' raised KeyError: 'no\\nkey' (on 3 samples), at {__file__}:{line} in fails"
    assert isinstance(caught.value.__cause__, KeyError)
    assert "reward 'r' raised ZeroDivisionError" in message(lambda samples: (1 / 0 for _ in samples))


def test_wrong_length() -> None:
    assert message([1.0, 2.0]) == "reward 'r' returned 2 numbers; expected one number for each of 3 samples"
    assert message([]) == "reward 'r' returned 0 numbers; expected one number for each of 3 samples"


@pytest.mark.parametrize(
    ("answer", "shown"), [(None, "None, a NoneType"), (1.0, "1.0, a float"), ("111", "'111', a str"), ({"a": 1}, "{'a': 1}, a dict")]
)
def test_no_list_at_all(answer: Any, shown: str) -> None:
    assert message(answer) == f"reward 'r' returned {shown}; expected one number for each of 3 samples"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        ("1.0", "'1.0'"),
        ([1.0], "[1.0]"),
        (1j, "1j"),
        (10**400, "1" + "0" * 59),
    ],
)
def test_what_is_no_finite_number_names_its_sample(value: Any, shown: str) -> None:
    expected = f"reward 'r' returned {shown} for sample 2 of 3; expected a finite number; its completion begins {'c' * 60!r}"
    assert message([1.0, 0.0, value]) == expected


class Odd:
    """What a user's own class may do."""

    def __float__(self) -> float:
        raise KeyError("x")

    def __repr__(self) -> str:
        raise RuntimeError("y")


class OddError(Exception):
    """Of which no text can be made."""

    def __str__(self) -> str:
        raise ValueError("z")


def test_objects_and_errors_of_which_no_text_can_be_made() -> None:
    def fails(samples: Sequence[Sample]) -> list[float]:
        raise OddError

    assert message([0.0, 0.0, Odd()]).startswith("reward 'r' returned an object whose __repr__ raises RuntimeError for sample 2 of 3;")
    assert message(Odd()).startswith("reward 'r' returned an object whose __repr__ raises RuntimeError, a Odd;")
    assert "reward 'r' raised OddError: its __str__ raises ValueError (on 3 samples)" in message(fails)


@pytest.mark.parametrize("values", [[1e308, 0.0, 0.0], [0.0, 3e38, 0.0], [0.0, 0.0, -3.5e38]])
def test_sums_beyond_float32_are_refused_with_their_parts(values: list[float]) -> None:
    rewards = [reward(values, name="big"), reward([1e38 * math.copysign(1.0, value) if value else 0.0 for value in values], name="more")]
    at = next(index for index, value in enumerate(values) if value)
    with pytest.raises(RewardError, match=rf"the rewards of sample {at} of 3 add up to .*\(big .* x 1, more .* x 1\), beyond what float32"):
        score(SAMPLES, rewards=rewards)
    assert score(SAMPLES, rewards=[reward([3.3e38, -3.3e38, 0.0], name="large")]).total == [3.3e38, -3.3e38, 0.0]
