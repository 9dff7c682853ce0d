"""The environments that come with the package: what they answer, what they pay, and what rows they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.plugins import Registry
from lightrft.rollout.environment import Continue, End, Environment, Step, Turn

REGISTRY = Registry.discover()


def said(text: str, number: int = 0, *, is_last: bool = False) -> Turn:
    return Turn(number=number, token_ids=(1,), text=text, raw_text=text, finish_reason="stop", is_last=is_last)


def begun(name: str, row: dict[str, Any]) -> Environment:
    environment: Environment = REGISTRY.load("environment", name)()
    assert environment.start(row) is None
    return environment


def answers(environment: Environment, *texts: str, last: bool = False) -> list[Any]:
    steps: list[Step] = []
    for number, text in enumerate(texts):
        step = environment.step(said(text, number, is_last=last and number == len(texts) - 1))
        assert isinstance(step, Step)
        steps.append(step)
    return [step.text if isinstance(step, Continue) else dict(step.reward) for step in steps]  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["37", 37])
def test_a_guess_is_told_the_direction_until_it_is_right(answer: Any) -> None:
    environment = begun("guess_number", {"answer": answer})
    assert answers(environment, "50", " 25\n", "37") == [" lower ", " higher ", {"solved": 1.0}]


def test_a_guess_that_is_no_number_or_the_last_one_ends_it() -> None:
    assert answers(begun("guess_number", {"answer": "3"}), "no") == [{"solved": 0.0}]
    assert answers(begun("guess_number", {"answer": "3"}), "4", "2", last=True) == [" lower ", {"solved": 0.0}]
    end = begun("guess_number", {"answer": "3"}).step(said("3"))
    assert isinstance(end, End) and end.info == {"guesses": [3]}


def test_moves_lead_to_the_goal_and_not_through_walls() -> None:
    row = {"size": 3, "start": [0, 0], "goal": [1, 2]}
    assert answers(begun("gridworld", row), "l", "right", "d", "D") == [" 0,0: ", " 1,0: ", " 1,1: ", {"solved": 1.0}]
    assert answers(begun("gridworld", row), "x") == [{"solved": 0.0}]
    assert answers(begun("gridworld", row), "r", "d", last=True) == [" 1,0: ", {"solved": 0.0}]


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("guess_number", {}, "needs a column answer with a whole number, found None"),
        ("guess_number", {"answer": "-3"}, "found '-3'"),
        ("gridworld", {"goal": [1, 1]}, r"needs a column start with \[x, y\], each from 0 to 3, found None"),
        ("gridworld", {"start": [0, 4], "goal": [1, 1]}, r"found \[0, 4\]"),
        ("gridworld", {"start": [0, True], "goal": [1, 1]}, r"found \[0, True\]"),
        ("gridworld", {"start": [1, 1], "goal": [1, 1]}, "there is nothing to do"),
        ("gridworld", {"size": 10, "start": [1, 1], "goal": [1, 1]}, "a size of 2 to 9 fields, found size=10"),
    ],
)
def test_a_row_that_does_not_fit_is_named(name: str, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        begun(name, row)
