"""What engines answer as columns: prompts and completions become the sequences of a `Sampled`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from lightrft.batch.images import ImageInputs
from lightrft.batch.stages import REASONS, Sampled
from lightrft.types import Completion, FinishReason, RequestOutput, Sample

NOTHING = Sample(prompt="", completion="")


def sequences_of(
    pairs: Sequence[tuple[Sequence[int], Completion]],
    *,
    group_ids: Sequence[int],
    samples: Sequence[Sample] | None = None,
    greedy: Sequence[Sample | None] | None = None,
    images: Sequence[ImageInputs | None] | None = None,
) -> Sampled:
    """One sequence for each (prompt, completion), in order; the completion's tokens are those that were sampled. A prompt with images has
    all of their tokens.

    Raises:
        ValueError: a prompt without tokens, after which nothing could have been predicted.
    """
    if any(not len(prompt) for prompt, _ in pairs):
        raise ValueError("a prompt has no tokens, so its completion's first token is predicted from nothing; give at least one")
    completions = [completion for _, completion in pairs]
    prompts = torch.tensor([len(prompt) for prompt, _ in pairs], dtype=torch.int64)
    answers = torch.tensor([len(completion.token_ids) for completion in completions], dtype=torch.int64)
    known = [completion.logprobs is not None for completion in completions]
    parts = torch.stack([prompts, answers], dim=1).flatten()
    sampled = torch.repeat_interleave(torch.arange(len(parts)) % 2 == 1, parts)
    logprobs = torch.zeros(int(parts.sum()))
    offsets = torch.nn.functional.pad((prompts + answers).cumsum(0), (1, 0))
    begins = torch.zeros(len(sampled), dtype=torch.bool)
    begins[offsets[:-1]] = True
    logprobs[sampled] = torch.tensor([p for c in completions for p in (c.logprobs if c.logprobs is not None else [0.0] * len(c.token_ids))])
    return Sampled(
        offsets=offsets,
        token_ids=_int32(chain.from_iterable(chain(prompt, completion.token_ids) for prompt, completion in pairs)),
        loss_mask=sampled,
        versions=torch.repeat_interleave(_int32(c.weight_version for c in completions), prompts + answers),
        engine_logprobs=logprobs,
        begins=begins,
        has_logprobs=torch.tensor(known, dtype=torch.bool),
        group_ids=torch.tensor(list(group_ids), dtype=torch.int64),
        finish_reasons=torch.tensor([REASONS.index(c.finish_reason) for c in completions], dtype=torch.int8),
        samples=tuple(samples) if samples is not None else (NOTHING,) * len(pairs),
        greedy=tuple(greedy) if greedy is not None else (None,) * len(pairs),
        images=tuple(images) if images is not None else (None,) * len(pairs),
    )


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A prompt and the tokens of all turns after it: `sampled` says which of them the policy drew, `logprobs` has theirs and 0 elsewhere
    (None: the engine was not asked), `versions` the weights that drew each (where the environment spoke, those of the turn before).
    `begins`: the places among `token_ids` where the model read a context that was written anew, which goes on to the next such place.
    """

    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    sampled: Sequence[bool]
    logprobs: Sequence[float] | None
    versions: Sequence[int]
    finish_reason: FinishReason
    begins: Sequence[int] = ()


def conversations_of(conversations: Sequence[Conversation], *, group_ids: Sequence[int], samples: Sequence[Sample]) -> Sampled:
    """One sequence for each conversation, in order; what the policy did not sample is outside of the loss.

    Raises:
        ValueError: a prompt without tokens, after which nothing could have been predicted.
    """
    whole = [
        Completion(token_ids=c.token_ids, finish_reason=c.finish_reason, weight_version=_last(c.versions), logprobs=c.logprobs)
        for c in conversations
    ]
    pairs = [(c.prompt_token_ids, completion) for c, completion in zip(conversations, whole, strict=True)]
    batch = sequences_of(pairs, group_ids=group_ids, samples=samples)
    mask, versions = batch.loss_mask.clone(), batch.versions.clone()
    versions[batch.loss_mask] = _int32(chain.from_iterable(c.versions for c in conversations))
    mask[batch.loss_mask] = torch.tensor([one for c in conversations for one in c.sampled], dtype=torch.bool)
    begins = batch.begins.clone()
    starts = zip(batch.offsets.tolist(), conversations, strict=False)
    begins[[start + len(c.prompt_token_ids) + place for start, c in starts for place in c.begins]] = True
    return replace(batch, loss_mask=mask, versions=versions, begins=begins)


def answers_of(outputs: Sequence[RequestOutput]) -> Sampled:
    """The completions of engine outputs, output by output, without texts; groups are the outputs' ids."""
    pairs = [(output.prompt_token_ids, completion) for output in outputs for completion in output.completions]
    return sequences_of(pairs, group_ids=[output.id for output in outputs for _ in output.completions])


def _last(versions: Sequence[int]) -> int:
    return versions[-1] if versions else 0


def _int32(numbers: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32)
