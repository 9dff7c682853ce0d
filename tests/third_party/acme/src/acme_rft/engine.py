"""How does a third party sample? One prompt at a time, the whole sequence through the model for each token."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lightrft.distributed.buckets import WeightBucket
from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.errors import EngineStateError, WeightSyncError
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams


class AcmeEngine(InferenceEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._model: Any = AutoModelForCausalLM.from_pretrained(setup.model_path, dtype=setup.dtype).to(setup.device).eval()
        self._status = EngineStatus.AWAKE
        self._version = 0

    @property
    def status(self) -> EngineStatus:
        return self._status

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        if self._status is not EngineStatus.AWAKE:
            raise EngineStateError(f"generate while {self._status}")
        return [self._one(request, sampling) for request in requests]

    def _one(self, request: Request, sampling: SamplingParams) -> RequestOutput:
        generator = torch.Generator().manual_seed(request.seed)
        completions = tuple(self._complete(request, sampling, generator) for _ in range(sampling.n))
        return RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=completions)

    def _complete(self, request: Request, sampling: SamplingParams, generator: torch.Generator) -> Completion:
        ids = list(request.prompt_token_ids)
        start, end = len(ids), min(len(ids) + sampling.max_new_tokens, self.setup.max_model_len)
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (self._model.config.eos_token_id,))}
        logprobs = []
        while len(ids) < end:
            logits = self._model(torch.tensor([ids], device=self.setup.device)).logits[0, -1].float().cpu()
            if sampling.temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(torch.softmax(logits / sampling.temperature, -1), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(torch.log_softmax(logits, -1)[token]))
            if token in stops:
                break
        return Completion(
            token_ids=ids[start:],
            finish_reason="stop" if ids[-1] in stops else "length",
            weight_version=self._version,
            logprobs=logprobs if request.logprobs else None,
        )

    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status is EngineStatus.ASLEEP:
            raise EngineStateError("update_weights while asleep")
        new = {name: weight.tensor.clone() for bucket in buckets for weight in bucket for name in weight.names}
        mine = dict(self._model.named_parameters(remove_duplicate=False))
        if {name: p.shape for name, p in mine.items()} != {name: t.shape for name, t in new.items()}:
            raise WeightSyncError(f"weights of another model: {sorted(mine.keys() ^ new.keys()) or 'shapes differ'}")
        for name, parameter in mine.items():
            parameter.copy_(new[name])
        self._version = version

    def reset_cache(self) -> None:
        """Nothing is kept between calls."""

    def sleep(self, level: int) -> None:
        self._model.to("cpu")
        self._status = EngineStatus.ASLEEP

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self._model.to(self.setup.device)
        if self._status is not EngineStatus.AWAKE:
            self._status = EngineStatus.AWAKE if "kv_cache" in tags else EngineStatus.WEIGHTS_ONLY

    def shutdown(self) -> None:
        self._model = None
        self._status = EngineStatus.UNUSABLE
