"""The adapter for environments of OpenEnv: a session of each episode, what the model reads and earns, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from lightrft.rollout.environment import Continue, End, Turn
from lightrft.rollout.environment_calls import EnvironmentCalls
from lightrft.rollout.openenv_texts import OpenEnvTexts


class Letters:
    """A client: `a` is worth 0.5, `b` nothing that is told, and the session is done after two."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def connect(self) -> None:
        self.told.append("connect")

    async def reset(self, **given: Any) -> Any:
        self.told.append(given)
        return SimpleNamespace(observation={"prompt": "spell ab", "number": 1}, reward=None, done=False)

    async def step(self, action: Mapping[str, Any]) -> Any:
        self.told.append(action)
        done = len(self.told) == 4
        return SimpleNamespace(observation={"prompt": "go on"}, reward=0.5 if action == {"letter": "a"} else None, done=done)

    async def close(self) -> None:
        self.told.append("close")


class OfLetters(OpenEnvTexts):
    action_key, observation_key = "letter", "prompt"

    def client(self) -> Any:
        self.made = Letters()
        return self.made


def said(text: str) -> Turn:
    return Turn(number=0, token_ids=(1,), text=text, raw_text=text, finish_reason="stop", is_last=False)


def test_observations_are_messages_and_turns_are_actions() -> None:
    async def played() -> Any:
        made = OfLetters()
        await made.close()
        start = await made.start({"seed": 7, "options": {"level": 2}})
        return made.made, start, await made.step(said(" a\n")), await made.step(said("b")), await made.close()

    client, start, first, last, _ = asyncio.run(played())
    assert start == [{"role": "user", "content": "spell ab"}]
    assert first == Continue(messages=[{"role": "user", "content": "go on"}], reward=0.5) and last == End(reward=0.0)
    assert client.told == ["connect", {"level": 2, "seed": 7}, {"letter": "a"}, {"letter": "b"}, "close"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({}, "needs a column seed with a whole number, found None"),
        ({"seed": 1, "options": [1]}, r"the column options is \[1\], not a mapping"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        asyncio.run(OfLetters().start(row))  # type: ignore[arg-type]


def test_an_observation_without_that_text_names_those_that_it_has() -> None:
    with pytest.raises(ValueError, match=r"no text ''; set observation_key of OpenEnvTexts to one of its texts \(a, c\), or say in text"):
        OpenEnvTexts().text({"c": "x", "a": "y", "b": 1})


@pytest.fixture
def server() -> Iterator[str]:
    """OpenEnv's own server, with an environment that counts down from its seed."""
    if find_spec("openenv") is None:
        pytest.skip("openenv is not installed")
    import threading
    import time

    import uvicorn
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

    class Word(Action):
        message: str

    class Left(Observation):
        text: str = ""

    class Countdown(Environment):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Left:
            self.left = seed or 0
            return Left(text=f"{self.left} left")

        def step(self, action: Word, timeout_s: float | None = None, **more: Any) -> Left:
            self.left -= 1
            return Left(text=f"{self.left} left, {action.message}", reward=0.25, done=self.left == 0)

        @property
        def state(self) -> State:
            return State()

    app = create_fastapi_app(Countdown, Word, Left, max_concurrent_envs=8)
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=10)


def test_sessions_at_openenv_s_own_server_do_not_mix(server: str) -> None:
    class Counts(OpenEnvTexts):
        url, observation_key = server, "text"

    calls = EnvironmentCalls(timeout_s=30.0, concurrency=4)
    episodes = [Counts() for _ in range(4)]
    starts = calls.run([lambda one=one, at=at: one.start({"seed": at + 2}) for at, one in enumerate(episodes)])  # type: ignore[misc]
    assert [outcome.error for outcome in starts] == [None] * 4
    assert [outcome.value[0]["content"] for outcome in starts] == [f"{at + 2} left" for at in range(4)]
    steps = calls.run([lambda one=one: one.step(said("x")) for one in episodes])  # type: ignore[misc]
    assert steps[3].value == Continue(messages=[{"role": "user", "content": "4 left, x"}], reward=0.25)
    steps = calls.run([lambda one=one: one.step(said("y")) for one in episodes])  # type: ignore[misc]
    assert steps[0].value == End(reward=0.25) and isinstance(steps[1].value, Continue)
    assert [outcome.error for outcome in calls.run([one.close for one in episodes])] == [None] * 4
    calls.close()
