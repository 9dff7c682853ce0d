"""Truncates a completion that ran on past its stop string or stop token. For engines that do not look for these themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from lightrft.types import Completion

Decode = Callable[[Sequence[int]], str]


def cut_at_stop(
    completion: Completion, *, stop: Sequence[str], stop_token_ids: Collection[int], min_new_tokens: int, decode: Decode
) -> Completion:
    """The completion up to and with the token that completes the first stop, which then says `stop`; itself, where there is none.

    What comes before a token does not depend on those after it, so the shorter completion is the one that stopping would have given.
    """
    end = _first_end(list(completion.token_ids), stop, set(stop_token_ids), min_new_tokens, decode)
    if end is None:
        return completion
    logprobs = None if completion.logprobs is None else list(completion.logprobs)[:end]
    return replace(completion, token_ids=list(completion.token_ids)[:end], logprobs=logprobs, finish_reason="stop")


def _first_end(tokens: list[int], stop: Sequence[str], stop_ids: set[int], at_least: int, decode: Decode) -> int | None:
    by_token = next((i + 1 for i, token in enumerate(tokens) if token in stop_ids and i >= at_least), None)
    before = len(decode(tokens[:at_least])) if stop and at_least else 0

    def held(length: int | None) -> bool:
        """Whether a stop string ends behind what `min_new_tokens` asks for: one before it stops nothing, as on other engines."""
        text = decode(tokens[:length])
        return any(text.find(one, max(0, before - len(one) + 1)) >= 0 for one in stop)

    if not stop or not held(by_token):
        return by_token
    # Text only grows, so this is false up to some length and true from there on.
    low, high = at_least, by_token or len(tokens)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if held(middle) else (middle, high)
    return high
