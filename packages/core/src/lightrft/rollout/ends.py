"""Checks that a completion ends where the one rule of stop tokens says: an engine with a rule of its own is told at its first rollout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from lightrft.types import Completion, SamplingParams

Decode = Callable[[Sequence[int], bool], str]
"""(token ids, skip special tokens) to text."""


def end_problem(completion: Completion, sampling: SamplingParams, *, eos_token_ids: Collection[int], decode: Decode) -> str | None:
    """What is wrong with the end of a completion, in words, or None. `eos_token_ids` are the model's own, of all sources.

    `stop` needs a stop token as the last one, or a stop string in the text; `length` may not end in a stop token; and none may stand before
    the last token. With stop strings the text is decoded, but only of completions that no stop token ends.
    """
    stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
    ids = list(completion.token_ids)
    if not stops.isdisjoint(ids[:-1]):
        at = next(i for i, token in enumerate(ids) if token in stops)
        return f"goes on for {len(ids) - at - 1} tokens after the stop token {ids[at]}"
    ended = bool(ids) and ids[-1] in stops
    if completion.finish_reason == "length" and ended:
        return f"ends in the stop token {ids[-1]} and says 'length'"
    if completion.finish_reason != "stop" or ended:
        return None
    if sampling.stop:
        text = decode(ids, sampling.skip_special_tokens)
        if any(stop in text for stop in sampling.stop):
            return None
    last = f"token {ids[-1]}" if ids else "no token"
    strings = f", and its text holds none of {sampling.stop!r}" if sampling.stop else ""
    return f"says 'stop' and ends in {last}, which is none of the stop tokens {sorted(stops)}{strings}"
