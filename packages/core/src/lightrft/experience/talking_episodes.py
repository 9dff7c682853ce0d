"""Episodes as an engine that is stepped sees them: it tells a turn that has ended, and asks which turns follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightrft.experience.live_episode import LiveEpisode
from lightrft.rollout.conversations import Ask
from lightrft.rollout.environment import Turn
from lightrft.rollout.environment_calls import BegunCalls, Outcome
from lightrft.types import Completion


class Answers(Protocol):
    """What answers turns: see `Episodes`."""

    def step(self, one: LiveEpisode) -> tuple[Turn, Callable[[], Any]]:
        """The last turn as the environment is told it, and the call that tells it."""

    def take(self, one: LiveEpisode, said: Turn, outcome: Outcome, *, limit: int, turn: int) -> None:
        """What the environment answered."""


class TalkingEpisodes:
    """See `rollout.conversations.Talks`. `limit`: tokens of an episode, `turn`: of a turn. Local."""

    def __init__(self, played: Sequence[LiveEpisode], answers: Answers, calls: BegunCalls, *, limit: int, turn: int) -> None:
        self._played, self._answers, self._calls, self._limit, self._turn = played, answers, calls, limit, turn
        self._said: dict[int, Turn] = {}

    @property
    def waiting(self) -> int:
        return len(self._calls)

    def hear(self, talk: int, completion: Completion) -> None:
        one = self._played[talk]
        one.add_turn(completion)
        if not one.ended:  # its environment may not have started
            self._said[talk], call = self._answers.step(one)
            self._calls.add(talk, call)

    def turns(self, *, wait_s: float | None) -> list[Ask]:
        found = []
        for talk, outcome in sorted(self._calls.done(wait_s=wait_s), key=lambda pair: pair[0]):
            one = self._played[talk]
            self._answers.take(one, self._said.pop(talk), outcome, limit=self._limit, turn=self._turn)
            if not one.ended:
                found.append(Ask(talk=talk, number=one.num_turns, token_ids=one.context, logprobs=one.asks_logprobs))
        return found
