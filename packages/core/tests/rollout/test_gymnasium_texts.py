"""The adapter for environments of gymnasium: what the model reads, what it earns, and what rows and observations are refused."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pytest

from lightrft.config.environment_checks import environment_problems
from lightrft.config.load import make_config
from lightrft.plugins import Registry
from lightrft.rollout.environment import Continue, End, Turn
from lightrft.rollout.gymnasium_texts import GymnasiumTexts


class Letters:
    """The letters of a word, one after the other: 0.5 for a right one, the end after two, or at the first wrong one."""

    def __init__(self, word: str = "ab", observations: Any = None) -> None:
        self.word, self.observations, self.closed = word, observations, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.at, self.first = 0, f"{seed} {options}"
        return self.observations or f"spell {self.word}, {self.first}", {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = action == self.word[self.at]
        self.at += 1
        return f"so far {self.at}", 0.5 * right, self.at == len(self.word), not right, {"at": self.at}

    def close(self) -> None:
        self.closed += 1


class OfLetters(GymnasiumTexts):
    def make(self, row: Mapping[str, Any]) -> Any:
        self.made = Letters(observations=row.get("observations"))
        return self.made


class Numbers(OfLetters):
    def text(self, observation: Any) -> str:
        return f"number {observation}"

    def action(self, turn: Turn) -> Any:
        return "ab"[int(turn.text)]


def said(text: str) -> Turn:
    return Turn(number=0, token_ids=(1,), text=text, raw_text=text, finish_reason="stop", is_last=False)


def test_observations_are_messages_and_rewards_are_those_of_its_steps() -> None:
    made = OfLetters()
    assert made.start({"seed": 7, "options": {"a": 1}}) == [{"role": "user", "content": "spell ab, 7 {'a': 1}"}]
    step = made.step(said(" a\n"))
    assert step == Continue(messages=[{"role": "user", "content": "so far 1"}], reward=0.5, info={"at": 1})
    assert made.step(said("b")) == End(reward=0.5, info={"at": 2})
    made.close()
    assert made.made.closed == 1


def test_a_truncated_episode_ends_and_nothing_is_closed_that_was_not_made() -> None:
    made = OfLetters()
    made.close()
    made.start({"seed": 0})
    assert made.step(said("x")) == End(reward=0.0, info={"at": 1})


def test_a_subclass_says_what_observations_and_actions_are() -> None:
    made = Numbers()
    assert made.start({"seed": 0, "observations": 5}) == [{"role": "user", "content": "number 5"}]
    assert made.step(said("0")).reward == 0.5


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "needs a column seed with a whole number, found None"),
        ({"seed": True}, "found True"),
        ({"seed": 1, "options": [1]}, r"the column options is \[1\], not a mapping"),
        ({"seed": 1, "observations": 3}, r"the observation is 3, a int, not a str; say in text\(\) of a subclass"),
    ],
)
def test_a_row_or_an_observation_that_does_not_fit_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        OfLetters().start(row)


def test_the_library_is_asked_for_by_its_extra() -> None:
    if find_spec("gymnasium"):
        pytest.skip("gymnasium is installed")
    [problem] = environment_problems(make_config({"environment": "gymnasium", "generate_max_len": 64}), Registry.discover())
    assert "which is not installed: pip install 'lightrft[gymnasium]'" in problem


def test_an_environment_of_the_library_is_played() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="the extra lightrft[gymnasium] is not installed")
    text = gymnasium.spaces.Text(max_length=80)
    of_library = type("OfLibrary", (Letters, gymnasium.Env), {"observation_space": text, "action_space": text})
    gymnasium.register(id="lightrft/Letters-v0", entry_point=of_library, max_episode_steps=5)
    made = Registry.discover().load("environment", "gymnasium")()
    row = {"env": "lightrft/Letters-v0", "env_args": {"word": "cd"}, "seed": 3}
    assert made.start(row) == [{"role": "user", "content": "spell cd, 3 {}"}]
    assert made.step(said("c")).messages == [{"role": "user", "content": "so far 1"}]
    assert made.step(said("d")) == End(reward=0.5, info={"at": 2})
    made.close()
    for name in ("os:Letters-v0", "", None):
        with pytest.raises(ValueError, match="the name of a registered environment, without a module"):
            GymnasiumTexts().start({"seed": 1, "env": name})
