"""Answers that are still being drawn: what they are made of, how a slice is added, and how a checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch

from lightrft.batch.stages import REASONS
from lightrft.data.prompts import Prompt
from lightrft.errors import EngineError
from lightrft.types import Completion, FinishReason, RequestOutput


class Grows(Protocol):
    """What takes several calls to the engine."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""


Member = TypeVar("Member", bound=Grows)

GOES_ON = -1
"""In a saved state, in the place of a finish reason."""


@dataclass(kw_only=True)
class Answer:
    """One completion as it grows. Of each token its log-prob by the engine, as it was sampled, and the weights that sampled it.

    `finish_reason` is None while it goes on.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None

    def add(self, drawn: Completion, *, asked: int, limit: int) -> None:
        """What the engine drew when it was asked for `asked` tokens at most; what goes beyond `limit` tokens of the answer is cut off.

        Raises:
            EngineError: there are no log-probs.
        """
        if drawn.logprobs is None:
            raise EngineError("the engine gave no log-probs for a slice of an answer, which is weighed by them; it has to give them")
        kept = list(drawn.token_ids[: limit - len(self.token_ids)])
        self.token_ids += kept
        self.logprobs += list(drawn.logprobs[: len(kept)])
        self.versions += [drawn.weight_version] * len(kept)
        if len(kept) < len(drawn.token_ids):
            self.finish_reason = "length"
        elif drawn.finish_reason != "length" or len(drawn.token_ids) < asked or len(self.token_ids) == limit:
            self.finish_reason = drawn.finish_reason

    def completion(self) -> Completion:
        """The finished answer; its version is that of its last token."""
        assert self.finish_reason is not None
        version = self.versions[-1] if self.versions else 0
        return Completion(token_ids=self.token_ids, finish_reason=self.finish_reason, weight_version=version, logprobs=self.logprobs)


@dataclass(kw_only=True)
class Group(Generic[Member]):
    """The answers to one prompt. `serial`: its place in the stream of all prompts of the run; `version`: the weights it was begun under."""

    prompt: Prompt
    serial: int
    version: int
    answers: list[Member]

    @property
    def complete(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.done for answer in self.answers)


def output_of(group: Group[Answer]) -> RequestOutput:
    """As an engine would give it."""
    completions = tuple(answer.completion() for answer in group.answers)
    return RequestOutput(id=group.serial, prompt_token_ids=group.prompt.token_ids, completions=completions)


def state_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Plain values and tensors."""
    return {
        "reasons": [GOES_ON if a.finish_reason is None else REASONS.index(a.finish_reason) for a in answers],
        "lengths": [len(answer.token_ids) for answer in answers],
        "token_ids": torch.tensor([token for answer in answers for token in answer.token_ids], dtype=torch.int32),
        "logprobs": torch.tensor([value for answer in answers for value in answer.logprobs], dtype=torch.float64),
        "versions": torch.tensor([version for answer in answers for version in answer.versions], dtype=torch.int32),
    }


def answers_of_state(state: Mapping[str, Any]) -> list[Answer]:
    """The reverse of `state_of`."""
    columns = [state[name].split(state["lengths"]) for name in ("token_ids", "logprobs", "versions")]
    return [
        Answer(
            token_ids=tokens.tolist(),
            logprobs=logprobs.tolist(),
            versions=versions.tolist(),
            finish_reason=None if reason == GOES_ON else REASONS[reason],
        )
        for reason, tokens, logprobs, versions in zip(state["reasons"], *columns, strict=True)
    ]
