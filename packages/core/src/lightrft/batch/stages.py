"""What flows through an iteration: a rollout's experience as columns, in four stages, each of which knows more than the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self, TypeVar, get_origin, get_type_hints

import torch

from lightrft.batch.grid import Grid
from lightrft.batch.images import ImageInputs
from lightrft.types import FinishReason, Sample

Per = Literal["token", "sequence"]
PerToken = Annotated[torch.Tensor, "token"]
PerSequence = Annotated[torch.Tensor, "sequence"]
"""Columns: one entry for each token [S], or for each sequence [N]."""

REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "env_error")
"""`finish_reasons` holds their places."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What the engine answered: N sequences of S tokens together, one after the other, on the CPU.

    A sequence is a prompt and what follows it. `offsets` int64 [N + 1] says where each begins and ends. Of each token: `token_ids` int32;
    `loss_mask` bool, true where the *policy* sampled it (prompts, and what an environment says in between, are false); `versions` int32,
    the weights that sampled it; `engine_logprobs` float32, its untempered log-probability by the engine, 0 where `has_logprobs` is false;
    `begins` bool, true where a context begins, of which the model reads nothing else: at the start of each sequence, and where the
    template wrote a conversation anew in its middle.
    Of each sequence: `has_logprobs` bool; `group_ids` int64, equal for the samples of one prompt; `finish_reasons` int8 (`REASONS`);
    `samples`, what reward functions see; `greedy`, the greedy answer to the same prompt, where the estimator asks for one; `images`, what
    the model is given of the prompt's images.
    """

    offsets: torch.Tensor
    token_ids: PerToken
    loss_mask: PerToken
    versions: PerToken
    engine_logprobs: PerToken
    begins: PerToken
    has_logprobs: PerSequence
    group_ids: PerSequence
    finish_reasons: PerSequence
    samples: Annotated[tuple[Sample, ...], "sequence"]
    greedy: Annotated[tuple[Sample | None, ...], "sequence"]
    images: Annotated[tuple[ImageInputs | None, ...], "sequence"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [N]: all tokens of each sequence."""
        return self.offsets.diff()

    @property
    def num_sampled(self) -> torch.Tensor:
        """int64 [N]: the tokens of each sequence that the policy sampled."""
        before = torch.nn.functional.pad(self.loss_mask.long().cumsum(0), (1, 0))
        return before[self.offsets].diff()

    @property
    def truncated(self) -> torch.Tensor:
        """bool [N]: ended by the limit of tokens."""
        return self.finish_reasons == REASONS.index("length")

    @property
    def env_failed(self) -> torch.Tensor:
        """bool [N]: ended because the environment failed."""
        return self.finish_reasons == REASONS.index("env_error")

    @property
    def grid(self) -> Grid:
        """Where the sampled tokens stand in [N, T]."""
        return Grid.of(self.num_sampled)

    def sampled(self, values: torch.Tensor) -> torch.Tensor:
        """[S] to [M]: of the sampled tokens alone."""
        return values[self.loss_mask]

    def on_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """[M] to [S], float32: 0 on tokens that were not sampled."""
        out = torch.zeros(len(self.loss_mask), dtype=torch.float32)
        out[self.loss_mask] = values.float()
        return out

    def by_sequence(self, values: torch.Tensor) -> list[torch.Tensor]:
        """[S] to N tensors: of each sequence its sampled tokens."""
        return list(torch.split(self.sampled(values), self.num_sampled.tolist()))

    def select(self, index: torch.Tensor) -> Self:
        """The sequences `index` int64 [K], in its order."""
        tokens, offsets = token_index(self.offsets, index)
        chosen = {name: _select(getattr(self, name), tokens if per == "token" else index) for name, per in columns_of(type(self)).items()}
        return type(self)(offsets=offsets, **chosen)

    def as_stage(self, stage: type[Stage], **more: Any) -> Stage:
        """The next stage: these columns and `more`."""
        return stage(**{f.name: getattr(self, f.name) for f in fields(self)} | more)


@dataclass(frozen=True, kw_only=True)
class Rewarded(Sampled):
    """`rewards` float64 [N]: the weighted sum of the reward functions. `baselines` float64 [N]: that of the greedy answer, 0 without.
    `trains` bool [N]: false where the loss leaves the sequence out.
    """

    rewards: PerSequence
    baselines: PerSequence
    trains: PerSequence


@dataclass(frozen=True, kw_only=True)
class Scored(Rewarded):
    """Float32 [S], on sampled tokens (0 elsewhere): `old_logprobs`, the actor's before the update, at the rollout's temperature (not a
    number where the update's own are the old ones, and no pass was made for them);
    `reference_logprobs` (equal to them without a reference model); `values` of the critic before the update (0 without one);
    `corrections`, the weight of a token's policy loss for how the engine differs from the trainer (1 without).
    """

    old_logprobs: PerToken
    reference_logprobs: PerToken
    values: PerToken
    corrections: PerToken


@dataclass(frozen=True, kw_only=True)
class Trainable(Scored):
    """Float32 [S], on sampled tokens (0 elsewhere): `advantages`, and `returns` that the critic is to learn (0 without one)."""

    advantages: PerToken
    returns: PerToken


Stage = TypeVar("Stage", bound=Sampled)


def columns_of(stage: type[Sampled]) -> dict[str, Per]:
    """Names of the columns, and what each has an entry for."""
    hints = get_type_hints(stage, include_extras=True)
    return {f.name: hints[f.name].__metadata__[0] for f in fields(stage) if get_origin(hints[f.name]) is Annotated}


def token_index(offsets: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places int64 [S'] of all tokens of the sequences `index` [K], in order, and the offsets [K + 1] that they have then."""
    lengths = offsets.diff()[index]
    new = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    shift = torch.repeat_interleave(offsets[index] - new[:-1], lengths)
    return torch.arange(int(new[-1])) + shift, new


def joined(parts: Sequence[Stage]) -> Stage:
    """One after the other; at least one part."""
    ends = torch.tensor([0, *(int(part.offsets[-1]) for part in parts)]).cumsum(0).tolist()
    offsets = torch.cat([parts[0].offsets[:1], *(part.offsets[1:] + end for part, end in zip(parts, ends, strict=False))])
    stage = type(parts[0])
    return stage(offsets=offsets, **{name: _join([getattr(part, name) for part in parts]) for name in columns_of(stage)})


def _select(values: Any, index: torch.Tensor) -> Any:
    return values[index] if isinstance(values, torch.Tensor) else tuple(values[i] for i in index.tolist())


def _join(values: Sequence[Any]) -> Any:
    return torch.cat(list(values)) if isinstance(values[0], torch.Tensor) else tuple(one for part in values for one in part)
