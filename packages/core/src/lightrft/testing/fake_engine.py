"""An engine without a model: its answers depend on its weights, the prompt and the seed only, so a test can foretell them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from lightrft.distributed.buckets import WeightBucket
from lightrft.distributed.checksum import WeightSum, tensor_sum
from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.errors import EngineStateError, WeightSyncError
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams

VOCAB_SIZE = 16
STOP_TOKEN = 1


class FakeEngine(InferenceEngine):
    """See `InferenceEngine`; vocabulary of 16 tokens, token 1 stops. The first update fixes which names and shapes the weights have."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._status = EngineStatus.AWAKE
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._sums: dict[tuple[str, ...], WeightSum] = {}
        self._weights: float | None = 0.0
        self._version = 0
        self.calls: list[str] = []

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
        staged: dict[str, torch.Tensor] = {}
        sums: dict[tuple[str, ...], WeightSum] = {}
        for bucket in buckets:
            for weight in bucket:
                staged |= dict.fromkeys(weight.names, weight.tensor.float())
                sums[weight.names] = WeightSum(*tensor_sum(weight.tensor))
        shapes = {name: tuple(tensor.shape) for name, tensor in staged.items()}
        if self._shapes and shapes != self._shapes:
            wrong = sorted(name for name in {*shapes, *self._shapes} if shapes.get(name) != self._shapes.get(name))
            raise WeightSyncError(f"weights refused, the old ones stay: missing, unknown or of another shape: {', '.join(wrong[:3])}")
        self._shapes, self._sums = shapes, sums
        self._weights = sum(float(tensor.double().sum()) for tensor in staged.values())
        self._version = version

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def weight_sums(self) -> Mapping[tuple[str, ...], WeightSum]:
        """It keeps no tensors: of those that it was given."""
        return self._sums

    def reset_cache(self) -> None:
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

    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (STOP_TOKEN,))}
        room = min(sampling.max_new_tokens, self.setup.max_model_len - len(request.prompt_token_ids))
        tokens: list[int] = []
        while len(tokens) < room and (not tokens or tokens[-1] not in stops):
            draw = (request.seed, sample) if sampling.temperature > 0 else (0, 0)
            key = struct.pack("<d", self._weights or 0.0) + repr((list(request.prompt_token_ids), draw, tokens)).encode()
            tokens.append(hashlib.sha256(key).digest()[0] % VOCAB_SIZE)
        reason = "stop" if tokens[-1] in stops else "length"
        return Completion(token_ids=tokens, finish_reason=reason, weight_version=self._version)  # type: ignore[arg-type]  # mypy widens
