"""The contract of an environment: what answers the policy, turn by turn, and what an episode earns. No torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lightrft.types import FinishReason

Start = Sequence[int] | Sequence[Mapping[str, Any]] | None
"""How an episode begins: token ids, chat messages, or None for the prompt of the data row."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call of a tool, as it was read from a turn. `problem`: why it cannot be read; `name` and `arguments` are empty then.

    Example::

        >>> import lightrft
        >>> lightrft.ToolCall(name="add", arguments={"a": 1, "b": 2}).problem
        ''
    """

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the policy said: T sampled `token_ids`, their `text` without special tokens, and `raw_text` with them.

    `number` counts from 0. `is_last`: no turn can follow (`max_turns`); a `Continue` ends the episode. `finish_reason` is `length` where
    `turn_max_len` truncated the turn. `calls`: those of the environment's `tools()`, in order, in the format of the chat template.

    Example::

        >>> import lightrft
        >>> class Echo(lightrft.Environment):
        ...     def step(self, turn: lightrft.Turn):
        ...         return lightrft.End() if turn.is_last else lightrft.Continue(text=turn.text)
        >>> turn = lightrft.Turn(number=0, token_ids=(3,), text="a", raw_text="a", finish_reason="stop", is_last=False)
        >>> Echo().step(turn).text
        'a'
    """

    number: int
    token_ids: tuple[int, ...]
    text: str
    raw_text: str
    finish_reason: FinishReason
    is_last: bool
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Continue:
    """The policy's next turn follows, after exactly one of these.

    `messages`: chat messages, `{"role": "user", "content": ...}`, written as the tokenizer's chat template writes them (needs
    `apply_chat_template`). `text`: these characters and nothing around them. `token_ids`: these tokens. Special tokens in messages and in
    text are plain characters. `reward`: what this turn earned, a number or named parts; an episode's reward is the sum of its turns'.
    `info` goes to the reward functions; of a name given twice, the later value.

    Example::

        >>> import lightrft
        >>> lightrft.Continue(text="Wrong. Try again: ", reward=-0.1).text
        'Wrong. Try again: '
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    text: str | None = None
    token_ids: Sequence[int] | None = None
    reward: float | Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("messages", "text", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"Continue takes exactly one of messages, text and token_ids, found {', '.join(given) or 'none'}")
        if self.text is not None and not isinstance(self.text, str):
            raise ValueError(f"Continue: text is {self.text!r:.60}, a {type(self.text).__name__}, not a str")
        if half := next((one for one in self.text or "" if "\ud800" <= one <= "\udfff"), ""):
            raise ValueError(f"Continue: text has {half!r}, half of a surrogate pair, which no tokenizer takes")
        if isinstance(self.messages, (str, Mapping)) or (self.messages is not None and not len(self.messages)):
            raise ValueError(f"Continue: messages is {self.messages!r:.60}, not a list of at least one message")
        ids = self.token_ids
        if ids is not None and not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
            raise ValueError(f"Continue: token_ids is {ids!r:.60}, not a list of token ids")
        _check_gains(self)


@dataclass(frozen=True, kw_only=True)
class End:
    """The episode is over. `reward`: what the last turn earned, a number or named parts. `info` goes to the reward functions.

    Example::

        >>> import lightrft
        >>> lightrft.End(reward={"solved": 1.0, "brief": 0.5}).reward["solved"]
        1.0
    """

    reward: float | Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_gains(self)


Step = Continue | End


class Environment(ABC):
    """One episode. A new object is made for each, without arguments, and used for it alone.

    Any of the methods may be `async`. Each call may take `environment_timeout_s`; calls of different episodes run at the same time, in
    threads or, where `async`, in one event loop. What a method raises, or a call that takes too long, ends its own episode (`env_error`).

    Example::

        >>> import lightrft
        >>> class Parrot(lightrft.Environment):
        ...     def step(self, turn):
        ...         return lightrft.End(reward=1.0) if "stop" in turn.text else lightrft.Continue(text=turn.text)
    """

    runs_code: ClassVar[bool] = False
    """It runs programs that the model wrote; a run without `allow_code_execution` refuses it at its start."""

    @classmethod
    def tools(cls) -> Sequence[Mapping[str, Any]]:
        """The JSON schemas of the tools that the chat template shows in every prompt; `Turn.calls` are calls of them. Called once a run."""
        return ()

    def start(self, row: Mapping[str, Any]) -> Start | Awaitable[Start]:  # noqa: B027  # has a default
        """What the policy reads first; None: the prompt of the data row. The same for all episodes of one row."""

    @abstractmethod
    def step(self, turn: Turn) -> Step | Awaitable[Step]:
        """What follows the policy's turn."""

    def close(self) -> Awaitable[None] | None:  # noqa: B027  # has a default
        """Called once, however the episode ended, also after `start` or `step` raised. It may run while a call that took too long does."""


class SingleTurn(Environment):
    """The episode is over after its first turn: a run without an environment."""

    def step(self, turn: Turn) -> Step:
        return End()


def _check_gains(step: Step) -> None:
    reward_parts(step.reward)
    if not isinstance(step.info, Mapping):
        raise ValueError(f"{type(step).__name__}: info is {step.info!r:.60}, not a mapping")


def reward_parts(reward: Any) -> dict[str, float]:
    """The named parts of a reward; a plain number is the part `reward`.

    Raises:
        ValueError: something else, or a number that is not finite.
    """
    parts = reward if isinstance(reward, Mapping) else {"reward": reward}
    for name, value in parts.items():
        if not isinstance(name, str) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"the reward of an environment is {reward!r:.60}; give one finite number, or named ones")
    return {name: float(value) for name, value in parts.items()}
