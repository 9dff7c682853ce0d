"""Requests and completions survive their journey as flat tensors."""

from lightrft.rollout.request_seeds import derive_seed
from lightrft.rollout.transport import pack_outputs, pack_requests, unpack_outputs, unpack_requests
from lightrft.types import Completion, Request, RequestOutput


def test_requests_round_trip() -> None:
    sent = [
        Request(id=0, prompt_token_ids=[5, 6, 7], seed=2**62 - 1, logprobs=True),
        Request(id=9, prompt_token_ids=[2**31 - 1], seed=0),
        Request(id=3, prompt_token_ids=[], seed=2**31),
    ]
    assert unpack_requests(pack_requests(sent)) == sent
    assert unpack_requests(pack_requests([])) == []


def test_outputs_round_trip() -> None:
    asked = [Request(id=i, prompt_token_ids=[i], seed=0) for i in range(3)]
    first = Completion(token_ids=[1, 2], finish_reason="stop", weight_version=4, logprobs=[-0.5, -0.25])
    second = Completion(token_ids=[3], finish_reason="length", weight_version=4)
    third = Completion(token_ids=[], finish_reason="abort", weight_version=5, logprobs=[])
    sent = [
        RequestOutput(id=0, prompt_token_ids=[0], completions=(first, second)),
        RequestOutput(id=1, prompt_token_ids=[1], completions=()),
        RequestOutput(id=2, prompt_token_ids=[2], completions=(third, first)),
    ]
    assert unpack_outputs(*pack_outputs(sent), asked) == sent


def test_derived_seeds_are_apart_and_fit() -> None:
    seeds = {derive_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert max(seeds) < 2**62
    ordered = sorted(seeds)
    assert min(b - a for a, b in zip(ordered, ordered[1:], strict=False)) > 2**20
