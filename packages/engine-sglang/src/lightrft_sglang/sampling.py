"""Converts our sampling parameters to SGLang's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightrft.types import SamplingParams

THEIR_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
WITHOUT_MEANING = frozenset({"spaces_between_special_tokens", "no_stop_trim"})
"""Parameters about SGLang's text; ours are token ids."""


def read_sampling(value: Any) -> SamplingParams:
    """Our dataclass, or a mapping with our names or SGLang's (`top_k` -1 is off).

    Raises:
        ValueError: something else, or an unknown name.
    """
    if not isinstance(value, Mapping):
        return SamplingParams.coerce(value)
    ours: dict[str, Any] = {THEIR_NAMES.get(str(name), str(name)): entry for name, entry in value.items() if name not in WITHOUT_MEANING}
    if ours.get("top_k") == -1:
        ours["top_k"] = 0
    if ours.get("stop") is None:
        ours.pop("stop", None)
    if ours.get("stop_token_ids") is None:
        ours.pop("stop_token_ids", None)
    return SamplingParams.coerce(ours)


def to_sglang(sampling: SamplingParams, *, room: int, eos_token_ids: Collection[int]) -> dict[str, Any]:
    """The dict for one request, whose context has `room` for so many tokens more.

    Stop strings stay with us: SGLang finds them only in text, and it makes none here. End-of-sequence tokens go along as stop tokens, so
    that all engines take them from one place.
    """
    stops = sorted({*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)})
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "max_new_tokens": min(sampling.max_new_tokens, room),
        "stop_token_ids": stops or None,
        "ignore_eos": sampling.ignore_eos,
    }


def left_to_us(sampling: SamplingParams) -> Collection[int]:
    """Stop tokens that SGLang does not look for: with `ignore_eos` it ignores all of them."""
    return sampling.stop_token_ids if sampling.ignore_eos else ()
