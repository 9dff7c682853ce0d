"""The plain values that travel between the rooms. No torch here.

Legend for all docstrings: B prompts, n samples per prompt, P prompt tokens, T completion tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

from lightrft.errors import nearest

FinishReason = Literal["stop", "length", "abort", "env_error"]
"""`stop`: a stop token or string ended it; `length`: `max_new_tokens` or the context did; `abort`: the caller may go on from it;
`env_error`: the environment of the episode failed (no engine says so).
"""


REFUSED_SAMPLING = {
    name: f"{what}, so what is drawn is not the distribution whose log-probs are trained (and compared with the engine's); "
    "use temperature, top_p, top_k or min_p"
    for name, what in {
        "repetition_penalty": "it changes the probabilities of a token by what stands before it",
        "presence_penalty": "it changes the probabilities of a token by what was drawn before",
        "frequency_penalty": "it changes the probabilities of a token by what was drawn before",
        "no_repeat_ngram_size": "it forbids tokens by what stands before them",
        "logit_bias": "it moves the logits of single tokens",
        "bad_words": "it forbids tokens by what stands before them",
    }.items()
}
"""Sampling options that engines know and that are refused, with the reason."""


class EngineStatus(StrEnum):
    """Where the engine's memory is: everything on the device, weights without KV cache, nothing."""

    AWAKE = "awake"
    WEIGHTS_ONLY = "weights_only"
    ASLEEP = "asleep"
    UNUSABLE = "unusable"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn; one meaning for every engine.

    `temperature` 0 is greedy; otherwise logits are divided by it, then `top_k` (0 = off), `top_p` and `min_p` (relative to
    the most likely token, 0 = off) keep a part of the distribution. `n` completions are drawn for each prompt.
    `stop_token_ids` end a completion beside the model's own end-of-sequence tokens, which `ignore_eos` disables; the stop token stays
    in the completion. `stop` strings are looked for in the decoded completion, from which `skip_special_tokens` leaves out special tokens;
    token ids always hold all of them. `seed` None lets the controller derive one from the run's seed and a call counter.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = [
            ("temperature", "a finite number >= 0", math.isfinite(self.temperature) and self.temperature >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("top_k", "an int >= 0 (0 = off)", self.top_k >= 0),
            ("min_p", "in [0, 1)", 0 <= self.min_p < 1),
            ("n", "an int >= 1", self.n >= 1),
            ("max_new_tokens", "an int >= 1", self.max_new_tokens >= 1),
            ("min_new_tokens", "between 0 and max_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens),
        ]
        bad = [f"{name}={getattr(self, name)!r} is not {rule}" for name, rule, ok in checks if not ok]
        if bad:
            raise ValueError(f"sampling parameters: {'; '.join(bad)}")

    @classmethod
    def coerce(cls, value: SamplingParams | Mapping[str, Any]) -> SamplingParams:
        """Our dataclass as it is, or a mapping of its fields.

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of range.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"sampling_params={value!r} is neither SamplingParams nor a mapping of its fields")
        known = [f.name for f in fields(cls)]
        for key in value:
            if key in REFUSED_SAMPLING:
                raise ValueError(f"sampling parameter {key}={value[key]!r} is not available: {REFUSED_SAMPLING[key]}")
            if key not in known:
                raise ValueError(f"unknown sampling parameter {key!r}{nearest(str(key), known)} (known: {', '.join(known)})")
        given = dict(value)
        for key in ("stop", "stop_token_ids"):
            if key in given:
                one = given[key]
                given[key] = (one,) if isinstance(one, (str, int)) else tuple(one)
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video of a prompt: its frames in order, PIL images in RGB of one size.

    Before it is read: a tuple of images as callers bring them, an array uint8 [T, H, W, 3], or the path or the bytes of an animation.
    """

    frames: Any


def frames_of(picture: Any) -> tuple[Any, ...]:
    """The frames of a video; an image alone."""
    return tuple(picture.frames) if isinstance(picture, Video) else (picture,)


def sources_of(picture: Any) -> tuple[Any, ...]:
    """What an image or a video of a data row is read from: paths and bytes."""
    source = picture.frames if isinstance(picture, Video) else picture
    return source if isinstance(source, tuple) else (source,)


def each_frame(picture: Any, change: Callable[[Any], Any]) -> Any:
    """The image, or the video, that `change` makes of it, frame by frame."""
    return Video(frames=tuple(map(change, picture.frames))) if isinstance(picture, Video) else change(picture)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt for an engine.

    `id` is unique within a call. `seed` fixes the draw of all n samples: the same request gives the same completions whatever
    else is in the batch, on engines that declare the capability `seed`. `logprobs` asks for the log-probability of each sampled token.

    `images` are PIL images in RGB, for engines that declare `multimodal`. The prompt holds the model's image token (`image_token` of its
    processor; for most models `image_token_id` of the configuration) once for each of them, in their order; the engine puts as many in
    its place as the image has. For engines that declare `video` there may be a `Video` among them, with the model's video token likewise.
    """

    id: int
    prompt_token_ids: Sequence[int]
    seed: int
    logprobs: bool = False
    images: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer: T token ids (stop token included), why it ended, the weights' version that it was drawn from.

    `logprobs` has T natural logs under the *untempered, unfiltered* model distribution, or is None where the request did not ask.
    """

    token_ids: Sequence[int]
    finish_reason: FinishReason
    weight_version: int
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """The n completions of one request, in the order of their sample index."""

    id: int
    prompt_token_ids: Sequence[int]
    completions: tuple[Completion, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A completion that has ended while others may go on: sample `index` of the request `id`."""

    id: int
    index: int
    completion: Completion


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What an environment made of a prompt. `turns`: (speaker, text) in order, the speaker `policy` or `environment`, special tokens left
    out of the text. `rewards`: each named part, summed over turns. `info`: what the environment said at its end. `error`: why it failed.
    `earned`: for each turn of the policy how many tokens it had sampled by its end, and the sum of what the environment gave for it.
    """

    turns: tuple[tuple[str, str], ...] = ()
    rewards: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    earned: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a reward function sees of one completion.

    `prompt` is the prompt's text as the model read it, special tokens included. `completion` is the text without special tokens,
    `raw_completion` with them, the stop token last; `token_ids` are the T sampled tokens. `answer` is the label as text; where the column
    holds a list of accepted ones, `answers` are all of them and `answer` is the first. `row` is the whole data row.

    `images` are those of the prompt, PIL in RGB, as the model read them.

    With an environment, `completion` is the policy's last turn, `raw_completion` everything after the prompt, the environment's words too,
    and `token_ids` are those that the policy sampled in all turns; `episode` is what the environment made of it, None without one.

    `source` is the name of the prompt's source, where `prompt_data` names several; else empty.

    Example::

        >>> import lightrft
        >>> lightrft.Sample(prompt="6 x 7 =", completion="42", answer="42").accepted
        ('42',)
    """

    prompt: str
    completion: str
    answer: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: FinishReason = "stop"
    num_tokens: int = 0
    answers: tuple[str, ...] = ()
    token_ids: Sequence[int] = ()
    raw_completion: str = ""
    episode: Episode | None = None
    images: tuple[Any, ...] = ()
    source: str = ""

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that counts as right: `answers`, or `answer` alone; none where there is no label."""
        return self.answers or (() if self.answer is None else (self.answer,))
