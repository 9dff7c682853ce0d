"""One episode as it grows: its tokens, who wrote them, what it earned, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightrft.batch.collect import Conversation
from lightrft.data.prompts import Prompt
from lightrft.rewards.import_file import place, said
from lightrft.rollout.environment import Continue, Environment, Step, ToolCall, Turn, reward_parts
from lightrft.types import Completion, Episode, FinishReason, Sample

ReadCalls = Callable[[str, str], tuple[ToolCall, ...]]
"""The calls in a turn's text without and with special tokens."""

Decode = Callable[[Sequence[int], bool], str]
"""Token ids to text, with or without special tokens."""

POLICY, ENVIRONMENT = "policy", "environment"


@dataclass(kw_only=True)
class LiveEpisode:
    """`prompt`: the place of its data row among the prompts of the call; `group`: equal for the episodes of one row.

    `token_ids`: all after the prompt; `sampled` and `logprobs` have an entry for each (0 where the environment wrote it).
    """

    prompt: int
    prompt_ids: tuple[int, ...]
    group: int = 0
    environment: Environment | None = None
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] | None = None
    version: int = 0
    num_turns: int = 0
    finish_reason: FinishReason = "stop"
    ended: bool = False
    error: str = ""
    close_error: str = ""
    rewards: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    _last: Completion | None = None
    _spoken: list[tuple[str, list[int]]] = field(default_factory=list)

    def add_turn(self, completion: Completion) -> None:
        """The policy's next turn, token by token as it was sampled."""
        if completion.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *completion.logprobs]
        self.token_ids += completion.token_ids
        self.sampled += [True] * len(completion.token_ids)
        self.version = completion.weight_version
        self.num_turns += 1
        self._last = completion
        self._spoken.append((POLICY, list(completion.token_ids)))
        if not self.error:
            self.finish_reason = completion.finish_reason

    def last_turn(self, *, decode: Decode, read_calls: ReadCalls, max_turns: int) -> Turn:
        """What the environment is told of the last turn."""
        assert self._last is not None
        ids = tuple(self._last.token_ids)
        text, raw_text = decode(ids, False), decode(ids, True)
        return Turn(
            number=self.num_turns - 1,
            token_ids=ids,
            text=text,
            raw_text=raw_text,
            finish_reason=self._last.finish_reason,
            is_last=self.num_turns == max_turns,
            calls=read_calls(text, raw_text),
        )

    def go_on(self, step: Step, tokens: Sequence[int], *, stops: bool, limit: int) -> None:
        """What the environment answered; `tokens` are its words. `stops`: no turn can follow, so a limit ends it and they are left out.

        An episode that the environment ends is cut off only where it has all the `limit` tokens that it may have.
        """
        for name, value in reward_parts(step.reward).items():
            self.rewards[name] = self.rewards.get(name, 0.0) + value
        self.info |= step.info
        if not isinstance(step, Continue):
            self.ended = True
            if self.finish_reason == "length" and len(self.token_ids) < limit:
                self.finish_reason = "stop"  # a turn was cut off, and the environment took it for an end
        elif stops:
            self.ended, self.finish_reason = True, "length"
        else:
            self.token_ids += tokens
            self.sampled += [False] * len(tokens)
            if self.logprobs is not None:
                self.logprobs += [0.0] * len(tokens)
            self._spoken.append((ENVIRONMENT, list(tokens)))

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
            version=self.version,
            finish_reason=self.finish_reason,
        )

    def sample(self, prompt: Prompt, *, decode: Decode) -> Sample:
        """What reward functions see of it; `prompt` is that of its data row."""
        own = [token for token, drawn in zip(self.token_ids, self.sampled, strict=True) if drawn]
        assert self._last is not None
        return Sample(
            prompt=prompt.text if self.prompt_ids == prompt.token_ids else decode(self.prompt_ids, True),
            completion=decode(self._last.token_ids, False),
            raw_completion=decode(self.token_ids, True),
            answer=prompt.answer,
            answers=prompt.answers,
            row=prompt.row,
            source=prompt.source,
            finish_reason=self.finish_reason,
            num_tokens=len(own),
            token_ids=own,
            episode=Episode(
                turns=tuple((who, decode(ids, False)) for who, ids in self._spoken),
                rewards=dict(self.rewards),
                info=self.info,
                error=self.error,
            ),
        )
