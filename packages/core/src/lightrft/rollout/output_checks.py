"""What an engine returned from `generate`, held to what it was asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lightrft.errors import EngineError, WeightSyncError
from lightrft.rollout.ends import Decode, end_problem
from lightrft.types import Completion, Request, RequestOutput, SamplingParams


@dataclass(frozen=True)
class Ends:
    """What ends a completion of this model: its own stop tokens, of all sources, and its tokenizer's way from ids to text."""

    eos_token_ids: Collection[int]
    decode: Decode


def check_outputs(
    requests: Sequence[Request],
    outputs: Sequence[RequestOutput],
    sampling: SamplingParams,
    *,
    engine: str,
    version: int,
    ends: Ends | None,
) -> None:
    """One output for each request, in order, of the weights of `version`, with the completions and log-probs that were asked for.

    Raises:
        EngineError: outputs, completions or log-probs are missing or too many; or a completion ends where it should not (with `ends`).
        WeightSyncError: a completion is of other weights.
    """
    name = f"engine {engine!r}"
    if [r.id for r in requests] != [o.id for o in outputs]:
        raise EngineError(f"{name} was given {len(requests)} requests and returned {len(outputs)} outputs, or in another order")
    for request, output in zip(requests, outputs, strict=True):
        if len(output.completions) != sampling.n:
            raise EngineError(f"{name} returned {len(output.completions)} completions for request {request.id}, asked were {sampling.n}")
        for completion in output.completions:
            check_completion(completion, request, sampling, engine=engine, version=version, ends=ends)


def check_completion(
    completion: Completion, request: Request, sampling: SamplingParams, *, engine: str, version: int, ends: Ends | None
) -> None:
    """One completion of this request. Raises as `check_outputs`."""
    name = f"engine {engine!r}"
    if completion.weight_version != version:
        raise WeightSyncError(f"{name} sampled from weights version {completion.weight_version}, the actor is at {version}")
    if request.logprobs and (completion.logprobs is None or len(completion.logprobs) != len(completion.token_ids)):
        found = None if completion.logprobs is None else len(completion.logprobs)
        raise EngineError(f"{name} returned {found} log-probs for {len(completion.token_ids)} tokens of request {request.id}")
    problem = ends and end_problem(completion, sampling, eos_token_ids=ends.eos_token_ids, decode=ends.decode)
    if problem:
        raise EngineError(f"{name}: a completion of request {request.id} {problem}; its rule for stop tokens is another one")
