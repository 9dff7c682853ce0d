"""Converts our sampling parameters to vLLM's, and vLLM's to ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm import SamplingParams as VLLMSamplingParams
from vllm.sampling_params import RequestOutputKind

from lightrft.types import Request, SamplingParams

THEIR_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
"""vLLM's names of what we call otherwise."""

READ_FIELDS = (
    "n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos",
    "skip_special_tokens", "seed",
)  # fmt: skip
"""The fields of vLLM's object that change what is drawn, and that we have too."""

WITHOUT_MEANING = frozenset({"logprobs", "prompt_logprobs", "detokenize", "spaces_between_special_tokens", "include_stop_str_in_output"})
"""Fields about the form of vLLM's answer: ours has all token ids, and log-probs where a request asks."""

COLDEST, HOTTEST = 0.01, 2.0
"""vLLM raises temperatures between 0 and the one to it, and only warns; it refuses those above the other."""


def read_sampling(value: Any) -> SamplingParams:
    """Our dataclass, vLLM's object, or a mapping with the names of either.

    Raises:
        ValueError: something else, or vLLM's object with a field that we cannot honour (which one).
    """
    if isinstance(value, VLLMSamplingParams):
        return SamplingParams.coerce(_ours(_fields(value)))
    return SamplingParams.coerce(_ours(value) if isinstance(value, Mapping) else value)


def to_vllm(sampling: SamplingParams, requests: Sequence[Request], *, eos_token_ids: Sequence[int]) -> list[VLLMSamplingParams]:
    """One object for each request. End-of-sequence tokens go along as stop tokens, so that all engines take them from one place.

    Raises:
        ValueError: a temperature that vLLM would change, or top_p with min_p, whose order is another one in vLLM.
    """
    if sampling.temperature != 0 and not COLDEST <= sampling.temperature <= HOTTEST:
        raise ValueError(f"temperature={sampling.temperature}: vLLM samples at {COLDEST} to {HOTTEST}, or greedily at 0; use one of these")
    if sampling.min_p > 0 and sampling.top_p < 1:
        raise ValueError(f"top_p={sampling.top_p} with min_p={sampling.min_p}: vLLM filters by min_p first, we by top_p; use one of them")
    stops = sorted({*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)})
    return [
        VLLMSamplingParams(
            # greedy draws are all the same, and vLLM refuses to make them twice
            n=1 if sampling.temperature == 0 else sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=request.seed,
            stop=list(sampling.stop),
            stop_token_ids=stops,
            ignore_eos=True,
            skip_special_tokens=sampling.skip_special_tokens,
            max_tokens=sampling.max_new_tokens,
            min_tokens=sampling.min_new_tokens,
            logprobs=0 if request.logprobs else None,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for request in requests
    ]


def _ours(values: Mapping[str, Any]) -> dict[str, Any]:
    return {THEIR_NAMES.get(name, name): value for name, value in values.items() if name not in WITHOUT_MEANING}


def _fields(value: VLLMSamplingParams) -> dict[str, Any]:
    plain = VLLMSamplingParams()
    given = [name for name in value.__struct_fields__ if not name.startswith("_") and getattr(value, name) != getattr(plain, name)]
    known = {*READ_FIELDS, *WITHOUT_MEANING, "flat_logprobs", "output_kind", "skip_clone", "output_text_buffer_length"}
    strange = [name for name in given if name not in known]
    if strange:
        raise ValueError(f"vLLM's SamplingParams({strange[0]}={getattr(value, strange[0])!r}) has no meaning here; leave it out")
    found = {name: getattr(value, name) for name in READ_FIELDS}
    if found["max_tokens"] is None:
        raise ValueError("vLLM's SamplingParams(max_tokens=None) has no bound; say how many tokens a completion may have")
    return found | {"stop": tuple(value.stop or ()), "stop_token_ids": tuple(value.stop_token_ids or ()), "top_k": max(value.top_k, 0)}
