"""`lightrft.score` on rows in memory: names and functions, weights, and what is wrong in a line each."""

from __future__ import annotations

from typing import Any

import pytest

import lightrft
from lightrft.errors import ConfigError, RewardError
from lightrft.rewards.code import code_reward

ROW = {"prompt": "6 x 7 =", "completion": "42", "answer": "42"}


def length(samples: Any) -> list[float]:
    return [float(len(sample.completion)) for sample in samples]


def fails(samples: Any) -> list[float]:
    return [1.0 / (len(sample.completion) - 3) for sample in samples]


def test_names_and_functions_weighted_row_by_row() -> None:
    found = lightrft.score([ROW, ROW | {"completion": "410"}], rewards=["exact_match", length], weights=[2.0, 0.5])
    assert found == [
        {"reward": 3.0, "parts": {"exact_match": 1.0, "length": 2.0}},
        {"reward": 1.5, "parts": {"exact_match": 0.0, "length": 3.0}},
    ]
    assert lightrft.score([], rewards=[length]) == []


@pytest.mark.parametrize(
    ("rows", "given", "problem"),
    [
        ([ROW], {"rewards": []}, "rewards is empty; give at least one name or function"),
        ([ROW], {"rewards": [length], "weights": [1, 2]}, "weights=[1, 2] has 2 numbers for 1 rewards; give one for each"),
        ([ROW], {"rewards": [3]}, "rewards[0]=3 is a int, not a function (samples) -> list of numbers"),
        ([ROW], {"rewards": [length, length]}, "two rewards are called 'length'; give one another name"),
        ([ROW], {"rewards": ["exact_mtch"]}, "unknown reward 'exact_mtch'; did you mean 'exact_match'?"),
        ([ROW], {"rewards": ["code"]}, "reward='code' runs programs that the model wrote; set --allow_code_execution"),
        ([{"prompt": "1"}], {"rewards": [length]}, "rows, row 0: no column 'completion' (columns: prompt)"),
        ([ROW], {"rewards": [length], "reward_timeout": 3}, "reward_timeout"),
    ],
)
def test_what_is_wrong_is_told(rows: list[dict[str, Any]], given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lightrft.score(rows, **given)
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_a_row_that_makes_a_reward_fail_is_named() -> None:
    with pytest.raises(RewardError, match="^rows, row 1: reward 'fails' raised ZeroDivisionError"):
        lightrft.score([ROW, ROW | {"completion": "420"}], rewards=[fails])


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        (["exact_match", "exact_match"], "reward 'exact_match' is named twice; name it once and give it a weight in reward_weights"),
        (
            ["length=json:dumps", length],
            "two rewards are called 'length'; give one another name (name=file.py:function, or the function's own)",
        ),
    ],
)
def test_a_name_that_two_rewards_have_is_told_once(rewards: list[Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lightrft.score([ROW], rewards=rewards)
    assert caught.value.problems == [problem]


def test_a_function_that_runs_programs_needs_the_permission_too() -> None:
    def graded(samples: Any) -> list[float]:
        return code_reward(samples)

    row = {"prompt": "p", "completion": "x = 1", "answer": "assert x == 1"}
    with pytest.raises(RewardError, match="allow_code_execution is off"):
        lightrft.score([row], rewards=[graded])
    assert lightrft.score([row], rewards=[graded], allow_code_execution=True) == [{"reward": 1.0, "parts": {"graded": 1.0}}]
