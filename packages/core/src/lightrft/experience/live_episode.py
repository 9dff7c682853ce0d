"""One episode as it grows: its tokens, who wrote them, what it earned, and how it ended."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from lightrft.batch.collect import Conversation
from lightrft.data.prompts import Prompt
from lightrft.experience.unfinished import Answer
from lightrft.rewards.import_file import place, said
from lightrft.rollout.environment import Continue, Environment, Step, ToolCall, Turn, reward_parts
from lightrft.types import Completion, Episode, FinishReason, Sample

ReadCalls = Callable[[str, str], tuple[ToolCall, ...]]
"""The calls in a turn's text without and with special tokens."""

Decode = Callable[[Sequence[int], bool], str]
"""Token ids to text, with or without special tokens."""

POLICY, ENVIRONMENT = "policy", "environment"


@dataclass(frozen=True, kw_only=True)
class Words:
    """What an environment said, as tokens. `context`: the whole conversation as the template writes it now, from which the next turn is
    sampled; empty where the tokens stand behind what there is.
    """

    token_ids: Sequence[int] = ()
    context: Sequence[int] = ()


@dataclass(kw_only=True)
class LiveEpisode:
    """`prompt`: that of its data row; `prompt_ids`: what the policy reads first. `group`: equal for the episodes of one row.

    `token_ids`: all after the prompt; `sampled`, `versions` and `logprobs` have an entry for each (no log-prob, 0, where the environment
    wrote it). `begins`: the places in it where a context begins that the template wrote anew. `messages`: the conversation that the prompt
    was written from; `exchanges`: what was sampled in each turn, and the messages that followed it (None where those were not messages).
    `turn`: what there is of a turn that takes several calls to the engine; `asks_logprobs`: whether the engine's are wanted.
    `no_room`: it was cut off before `max_turns`, for no whole turn fits in behind what the environment said.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    asks_logprobs: bool = False
    group: int = 0
    environment: Environment | None = None
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    begins: list[int] = field(default_factory=list)
    messages: Sequence[Mapping[str, Any]] = ()
    exchanges: list[tuple[tuple[int, ...], Sequence[Mapping[str, Any]] | None]] = field(default_factory=list)
    turn: Answer = field(default_factory=Answer)
    finish_reason: FinishReason = "stop"
    ended: bool = False
    no_room: bool = False
    error: str = ""
    close_error: str = ""
    rewards: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    _earned: list[tuple[int, float]] = field(default_factory=list)
    _turns: list[tuple[tuple[int, ...], FinishReason]] = field(default_factory=list)
    _spoken: list[tuple[str, list[int]]] = field(default_factory=list)

    @property
    def num_turns(self) -> int:
        """Of the policy, whole ones."""
        return len(self._turns)

    @property
    def done(self) -> bool:
        """Whether nothing follows. One whose environment did not start has a first turn all the same."""
        return self.ended and bool(self._turns)

    @property
    def context(self) -> list[int]:
        """What the next turn is sampled from, or the rest of the one that has begun."""
        begin = self.begins[-1] if self.begins else 0
        return [*(() if self.begins else self.prompt_ids), *self.token_ids[begin:], *self.turn.token_ids]

    def length(self, words: Words = Words()) -> int:
        """The tokens of the episode that count against its limit, once these words are there: what its context has beyond the prompt, and
        at least all that was sampled.
        """
        context = len(words.context) or len(self.context) + len(words.token_ids)
        return max(context - len(self.prompt_ids), sum(self.sampled))

    def end_turn(self) -> None:
        """The turn that took several calls is whole."""
        turn, self.turn = self.turn, Answer()
        self.add_turn(turn.completion(), versions=turn.versions)

    def add_turn(self, completion: Completion, *, versions: Sequence[int] = ()) -> None:
        """The policy's next turn, token by token as it was sampled; `versions`: of each token, where not all are the completion's."""
        if completion.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *completion.logprobs]
        self.token_ids += completion.token_ids
        self.sampled += [True] * len(completion.token_ids)
        self.versions += versions or [completion.weight_version] * len(completion.token_ids)
        self._turns.append((tuple(completion.token_ids), completion.finish_reason))
        self._spoken.append((POLICY, list(completion.token_ids)))
        if not self.error:
            self.finish_reason = completion.finish_reason

    def last_turn(self, *, decode: Decode, read_calls: ReadCalls, max_turns: int) -> Turn:
        """What the environment is told of the last turn."""
        ids, reason = self._turns[-1]
        text, raw_text = decode(ids, False), decode(ids, True)
        return Turn(
            number=self.num_turns - 1,
            token_ids=ids,
            text=text,
            raw_text=raw_text,
            finish_reason=reason,
            is_last=self.num_turns == max_turns,
            calls=read_calls(text, raw_text),
        )

    def go_on(self, step: Step, words: Words, *, stops: bool, limit: int) -> None:
        """What the environment answered; `words` are its own. `stops`: no turn can follow, so a limit ends it and they are left out.

        An episode that the environment ends is cut off only where it has all the `limit` tokens that it may have.
        """
        parts = reward_parts(step.reward)
        for name, value in parts.items():
            self.rewards[name] = self.rewards.get(name, 0.0) + value
        self._earned.append((sum(self.sampled), math.fsum(parts.values())))
        self.info |= step.info
        if not isinstance(step, Continue):
            self.ended = True
            if self.finish_reason == "length" and self.length() < limit:
                self.finish_reason = "stop"  # a turn was cut off, and the environment took it for an end
        elif stops:
            self.ended, self.finish_reason = True, "length"
        else:
            if words.context:
                self.begins.append(len(self.token_ids))
            added = words.context or words.token_ids
            self.token_ids += added
            self.sampled += [False] * len(added)
            self.versions += [self.versions[-1] if self.versions else 0] * len(added)
            if self.logprobs is not None:
                self.logprobs += [0.0] * len(added)
            self._spoken.append((ENVIRONMENT, list(words.token_ids)))

    def fail(self, method: str, error: BaseException) -> None:
        """The environment failed: the episode ends, and the loss leaves it out."""
        self.error = f"{method}: {said(error)}{place(error)}"
        self.ended, self.finish_reason = True, "env_error"

    def fail_to_close(self, error: BaseException) -> None:
        """The environment failed in `close`: the episode has ended, and counts."""
        self.close_error = f"close: {said(error)}{place(error)}"

    def conversation(self) -> Conversation:
        """Its tokens for training."""
        return Conversation(
            prompt_token_ids=self.prompt_ids,
            token_ids=self.token_ids,
            sampled=self.sampled,
            logprobs=self.logprobs,
            versions=self.versions,
            finish_reason=self.finish_reason,
            begins=self.begins,
        )

    def sample(self, *, decode: Decode) -> Sample:
        """What reward functions see of it."""
        prompt = self.prompt
        own = [token for token, drawn in zip(self.token_ids, self.sampled, strict=True) if drawn]
        return Sample(
            prompt=prompt.text if self.prompt_ids == prompt.token_ids else decode(self.prompt_ids, True),
            completion=decode(self._turns[-1][0], False),
            raw_completion=decode([token for _, ids in self._spoken for token in ids], True),
            answer=prompt.answer,
            answers=prompt.answers,
            row=prompt.own_row(),
            source=prompt.source,
            finish_reason=self.finish_reason,
            num_tokens=len(own),
            token_ids=own,
            episode=Episode(
                turns=tuple((who, decode(ids, False)) for who, ids in self._spoken),
                rewards=dict(self.rewards),
                info=self.info,
                error=self.error,
                earned=tuple(self._earned),
            ),
        )

    def turn_at(self, number: int) -> Completion:
        """The policy's turn `number`, from 0, as the environment was told it."""
        ids, reason = self._turns[number]
        return Completion(token_ids=ids, finish_reason=reason, weight_version=0)

    @property
    def told(self) -> tuple[Any, ...]:
        """What its environment made of it so far."""
        return self.ended, self.prompt_ids, self.token_ids, self.begins, self.rewards

    def state(self) -> dict[str, Any]:
        """All but its data row and its environment, as plain values, copied."""
        names = [one.name for one in fields(self) if one.name not in ("prompt", "environment", "turn")]
        return copy.deepcopy({name: getattr(self, name) for name in names} | {"turn": vars(self.turn)})

    @classmethod
    def of(cls, state: Mapping[str, Any], *, prompt: Prompt) -> Self:
        """The reverse of `state`, without an environment."""
        return cls(prompt=prompt, **{**state, "turn": Answer(**state["turn"])})
