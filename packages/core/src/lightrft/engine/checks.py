"""Requests that an engine could not answer. Checked on our side, because engines hang or die of some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightrft.plugins.specs import Capability
from lightrft.types import Request, SamplingParams


def check_requests(requests: Sequence[Request], *, vocab_size: int, max_model_len: int) -> None:
    """Raises ValueError, naming the first request: empty prompt, token id outside the vocabulary, no room for a completion."""
    for request in requests:
        ids = request.prompt_token_ids
        if not len(ids):
            raise ValueError(f"request {request.id}: the prompt has no tokens")
        if len(ids) >= max_model_len:
            raise ValueError(f"request {request.id}: a prompt of {len(ids)} tokens leaves no room in a context of {max_model_len}")
        low, high = min(ids), max(ids)
        if low < 0 or high >= vocab_size:
            raise ValueError(f"request {request.id}: token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}")


def needed_capabilities(sampling: SamplingParams, *, logprobs: bool, images: bool, videos: bool) -> Iterator[tuple[str, Capability]]:
    """What a call asks beyond the plain, as (what was asked, capability)."""
    if sampling.stop:
        yield f"stop={sampling.stop!r}", Capability.STOP_STRINGS
    if sampling.min_p > 0:
        yield f"min_p={sampling.min_p}", Capability.MIN_P
    if sampling.min_new_tokens > 0:
        yield f"min_new_tokens={sampling.min_new_tokens}", Capability.MIN_NEW_TOKENS
    if logprobs:
        yield "logprobs", Capability.LOGPROBS
    if images:
        yield "images", Capability.MULTIMODAL
    if videos:
        yield "videos", Capability.VIDEO
