"""An engine without a model: its answers depend on its weights, the prompt and the seed only, so a test can foretell them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.errors import EngineStateError, WeightSyncError
from lightrft.types import Completion, Ended, EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket, tied_names
from lightrft.weights.checksum import MODULUS, WeightChecksum, tensor_checksum
from lightrft.weights.verify import shape_problems

VOCAB_SIZE = 16
STOP_TOKEN = 1

Checksums = dict[tuple[str, ...], WeightChecksum]
OTHER_NAMES = ("vision_config", "num_experts")
"""In the config.json of models whose files have other names than their modules."""


class FakeEngine(InferenceEngine):
    """See `InferenceEngine`; vocabulary of 16 tokens, token 1 stops. Of its weights it keeps checksums.

    Names, shapes and values of version 0 come from the folder's `model.safetensors`; where there is none, from the first update. Names
    of image-text models and of those with experts always do: their files have others than their modules. An image counts by its pixels,
    wherever its token stands.
    """

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._status = EngineStatus.AWAKE
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._checksums: Checksums = {}
        self._weights: int | None = 0
        self._version = 0
        self.calls: list[str] = []
        file = Path(setup.model_path) / "model.safetensors"
        if setup.model_path and file.is_file():
            held = load_file(file)
            config = (file.parent / "config.json").read_text(encoding="utf-8")
            if not any(word in config for word in OTHER_NAMES):
                self._shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
            self._hold({(name,): tensor.to(setup.dtype) for name, tensor in held.items()})

    @property
    def status(self) -> EngineStatus:
        return self._status

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        self.calls.append("generate")
        if self._status is not EngineStatus.AWAKE or self._weights is None:
            raise EngineStateError(f"generate while the engine is {self._status}, weights held: {self._weights is not None}")
        check_requests(requests, vocab_size=VOCAB_SIZE, max_model_len=self.setup.max_model_len)
        outputs = []
        for r in requests:
            completions = tuple(self._complete(r, sampling, sample) for sample in range(sampling.n))
            self.report(tokens=sum(len(c.token_ids) for c in completions), completions=len(completions))
            outputs.append(RequestOutput(id=r.id, prompt_token_ids=r.prompt_token_ids, completions=completions))
            self.finished(outputs[-1])
        return outputs

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        self.calls.append("update_weights")
        if self._status not in (EngineStatus.AWAKE, EngineStatus.WEIGHTS_ONLY):
            raise EngineStateError(f"update_weights while the engine is {self._status}")
        sent = {weight.names: self._received(weight) for bucket in buckets for weight in bucket}
        problems = self._problems(sent)
        if problems:
            raise WeightSyncError(f"weights refused, the old ones stay: {'; '.join(problems[:3])}")
        self._shapes = self._shapes or {name: tuple(tensor.shape) for names, tensor in sent.items() for name in names}
        self._hold(sent)
        self._version = version

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        """It keeps no tensors: of those that it was given."""
        return self._checksums

    def reset_cache(self) -> None:
        self._alive()
        self.calls.append("reset_cache")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep({level})")
        self._alive()
        self._status = EngineStatus.ASLEEP
        if level == 2:
            self._weights = None

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self.calls.append(f"wake_up({', '.join(tags)})")
        self._alive()
        if self._status is EngineStatus.ASLEEP and "weights" in tags:
            self._status = EngineStatus.WEIGHTS_ONLY
        if self._status is EngineStatus.WEIGHTS_ONLY and "kv_cache" in tags:
            self._status = EngineStatus.AWAKE

    def shutdown(self) -> None:
        self._status = EngineStatus.UNUSABLE

    def _alive(self) -> None:
        if self._status is EngineStatus.UNUSABLE:
            raise EngineStateError("the engine was shut down")

    def _received(self, weight: Weight) -> torch.Tensor:
        """A copy: the sender may use the tensor again."""
        return weight.tensor.clone()

    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        """Why these are not the weights of this model."""
        found = shape_problems({names: tuple(t.shape) for names, t in sent.items()}, self._shapes) if self._shapes else []
        return found + [f"of another dtype: {names[0]} ({t.dtype})" for names, t in sent.items() if t.dtype is not self.setup.dtype]

    def _hold(self, tensors: Mapping[tuple[str, ...], torch.Tensor]) -> None:
        self._checksums = {names: WeightChecksum(*tensor_checksum(tensor)) for names, tensor in tensors.items()}
        self._weights = fingerprint(self._checksums)

    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (STOP_TOKEN,))}
        room = min(sampling.max_new_tokens, self.setup.max_model_len - len(request.prompt_token_ids))
        tokens: list[int] = []
        while len(tokens) < room and (not tokens or tokens[-1] not in stops):
            tokens.append(self._next(request, sampling, sample, tokens))
        reason = "stop" if tokens[-1] in stops else "length"
        return Completion(token_ids=tokens, finish_reason=reason, weight_version=self._version)  # type: ignore[arg-type]  # mypy widens

    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        draw = (request.seed, sample) if sampling.temperature > 0 else None
        seen = digests(request.images)
        return next_token(self._weights or 0, request.prompt_token_ids, tokens, draw=draw, support=support(sampling), images=seen)


def fingerprint(checksums: Mapping[tuple[str, ...], WeightChecksum]) -> int:
    """One number of all weights, in whatever order, parts and buckets they came; a tied one counts once."""
    return sum(value.bits + 3 * value.squares for value in checksums.values()) % MODULUS


def support(sampling: SamplingParams) -> int:
    """How many of the 16 tokens, all equally likely, a draw is among: `top_k` of them, or the fraction `top_p`."""
    kept = min(sampling.top_k or VOCAB_SIZE, VOCAB_SIZE)
    return min(kept, max(1, math.ceil(sampling.top_p * VOCAB_SIZE)))


def next_token(
    weights: int,
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    draw: tuple[int, int] | None,
    support: int,
    images: Sequence[str] = (),
) -> int:
    """The greedy token where `draw` (seed, sample) is None, else one of the `support` tokens from it on; `images` are their digests."""
    context = (weights, list(prompt), list(tokens), *images)
    first = _hash(context) % VOCAB_SIZE
    return first if draw is None else (first + _hash((*context, draw)) % support) % VOCAB_SIZE


def digests(images: Sequence[Any]) -> list[str]:
    """One of each PIL image's pixels."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "little")


class FakeJudge:
    """Foretells a `FakeEngine` that holds a model's weights: a judge as in `testing.judge`."""

    vocab_size = VOCAB_SIZE
    eos_id = STOP_TOKEN
    image_tokens: tuple[int, ...] = (2,)

    def greedy(self, model: Any, prompt: Sequence[int], *, max_new_tokens: int, images: Sequence[Any] = ()) -> list[int]:
        weights, tokens, seen = self._weights(model), list[int](), digests(images)
        while len(tokens) < max_new_tokens and (not tokens or tokens[-1] != STOP_TOKEN):
            tokens.append(next_token(weights, prompt, tokens, draw=None, support=VOCAB_SIZE, images=seen))
        return tokens

    def distribution(self, model: Any, prompt: Sequence[int], *, temperature: float) -> torch.Tensor:
        return torch.full((VOCAB_SIZE,), 1 / VOCAB_SIZE, dtype=torch.float64)

    def logprobs(self, model: Any, prompt: Sequence[int], token_ids: Sequence[int], *, temperature: float = 1.0) -> torch.Tensor:
        return torch.full((len(token_ids),), -math.log(VOCAB_SIZE), dtype=torch.float64)

    def logprobs_of_each(self, model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [self.logprobs(model, prompt, tokens) for tokens in completions]

    def _weights(self, model: Any) -> int:
        names = tied_names(model)
        return fingerprint({names[name]: WeightChecksum(*tensor_checksum(p.detach())) for name, p in model.named_parameters()})


class SteppingEngine(FakeEngine):
    """As `FakeEngine`, one token of every completion at each poll; declares `stepping`. `polls` has how many there were."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self.polls = 0
        self._drawn: list[tuple[Ended, int]] = []

    def start(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        ended = [Ended(id=o.id, index=j, completion=c) for o in self.generate(requests, sampling) for j, c in enumerate(o.completions)]
        self._drawn += [(one, self.polls + len(one.completion.token_ids)) for one in ended]

    def poll(self) -> list[Ended]:
        self.polls += 1
        ended = [one for one, at in self._drawn if at <= self.polls]
        self._drawn = [(one, at) for one, at in self._drawn if at > self.polls]
        return ended

    def abort(self) -> None:
        self._drawn = []
