"""Prompts and completions between the ranks of a group: as flat int32 and float32 tensors, never as pickled lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightrft.types import Completion, FinishReason, Request, RequestOutput

_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort")


def pack_requests(requests: Sequence[Request]) -> torch.Tensor:
    """int32: number of requests, then for each: id, seed (two words), logprobs, prompt length; then all prompt tokens. Images go apart."""
    head = [len(requests)]
    tokens: list[int] = []
    for request in requests:
        head += [request.id, request.seed >> 31, request.seed & 0x7FFFFFFF, int(request.logprobs), len(request.prompt_token_ids)]
        tokens += request.prompt_token_ids
    return torch.tensor(head + tokens, dtype=torch.int32)


def unpack_requests(flat: torch.Tensor) -> list[Request]:
    """The reverse of `pack_requests`."""
    values = flat.tolist()
    count = values[0]
    at = 1 + 5 * count
    requests = []
    for index in range(count):
        identity, high, low, logprobs, length = values[1 + 5 * index : 6 + 5 * index]
        requests.append(Request(id=identity, prompt_token_ids=values[at : at + length], seed=(high << 31) | low, logprobs=bool(logprobs)))
        at += length
    return requests


def pack_outputs(outputs: Sequence[RequestOutput]) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 (number of outputs; for each: number of completions; for each completion: length, reason, version, has log-probs; then all
    tokens) and float32 (all log-probs).
    """
    counts = [len(output.completions) for output in outputs]
    head: list[int] = []
    tokens: list[int] = []
    logprobs: list[float] = []
    for output in outputs:
        for completion in output.completions:
            has = completion.logprobs is not None
            head += [len(completion.token_ids), _REASONS.index(completion.finish_reason), completion.weight_version, int(has)]
            tokens += completion.token_ids
            logprobs += completion.logprobs or ()
    return torch.tensor([len(counts), *counts, *head, *tokens], dtype=torch.int32), torch.tensor(logprobs, dtype=torch.float32)


def unpack_outputs(flat: torch.Tensor, logprobs: torch.Tensor, requests: Sequence[Request]) -> list[RequestOutput]:
    """The reverse of `pack_outputs`, for the requests that the outputs answer."""
    values, floats = flat.tolist(), logprobs.tolist()
    count = values[0]
    counts = values[1 : 1 + count]
    head = 1 + count
    at, at_float = head + 4 * sum(counts), 0
    outputs = []
    for request, number in zip(requests, counts, strict=True):
        completions = []
        for _ in range(number):
            length, reason, version, has = values[head : head + 4]
            drawn = floats[at_float : at_float + length] if has else None
            completions.append(
                Completion(token_ids=values[at : at + length], finish_reason=_REASONS[reason], weight_version=version, logprobs=drawn)
            )
            head, at, at_float = head + 4, at + length, at_float + length * has
        outputs.append(RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=tuple(completions)))
    return outputs
