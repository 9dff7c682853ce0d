"""The engine `acme`: one prompt at a time: its n completions grow together, and all of their text goes through the model each time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.engine.filters import filter_logits
from lightrft.engine.model_facts import model_facts
from lightrft.errors import CapabilityError, EngineStateError
from lightrft.types import Completion, EngineStatus, FinishReason, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket, tied_names
from lightrft.weights.checksum import WeightChecksum, tensor_checksum
from lightrft.weights.staging import stage


class AcmeEngine(InferenceEngine):
    """See `InferenceEngine`. Built awake, with the weights of `setup.model_path` as version 0."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        model: Any = AutoModelForCausalLM.from_pretrained(setup.model_path, dtype=setup.dtype, trust_remote_code=setup.trust_remote_code)
        self._model: Any = model.to(setup.device).eval().requires_grad_(False)
        self._facts = model_facts(setup.model_path, trust_remote_code=setup.trust_remote_code)
        self._status = EngineStatus.AWAKE
        self._version = 0

    @property
    def status(self) -> EngineStatus:
        return self._status

    # ---- completions ---------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        if self._status is not EngineStatus.AWAKE:
            raise EngineStateError(f"generate while the engine is {self._status}; call wake_up first")
        check_requests(requests, vocab_size=self._facts.vocab_size, max_model_len=self.setup.max_model_len)
        outputs = []
        for request in requests:
            completions = self._complete(request, sampling)
            outputs.append(RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=completions))
            self.report(tokens=sum(len(c.token_ids) for c in completions), completions=len(completions))
            self.finished(outputs[-1])  # its reward may start
        return outputs

    def _complete(self, request: Request, sampling: SamplingParams) -> tuple[Completion, ...]:
        generator = torch.Generator().manual_seed(request.seed)  # of this request alone: the others in the batch do not change its draws
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._facts.eos_token_ids)}
        start = len(request.prompt_token_ids)
        room = min(sampling.max_new_tokens, self.setup.max_model_len - start)
        ids = torch.tensor([list(request.prompt_token_ids)] * sampling.n, device=self.setup.device)
        logprobs, running = [], torch.ones(sampling.n, dtype=torch.bool)
        while running.any() and ids.shape[1] < start + room:  # rows that have ended grow on until the last one has; `_end` ends them
            logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()
            tokens = _draw(logits, sampling, generator)
            logprobs.append(logits.log_softmax(-1).gather(-1, tokens[:, None]))  # of the model as it is: no temperature, no filter
            ids = torch.cat([ids, tokens[:, None].to(ids.device)], dim=-1)
            running &= torch.tensor([token not in stops for token in tokens.tolist()])
        rows = zip(ids[:, start:].tolist(), torch.cat(logprobs, dim=-1).tolist(), strict=True)
        return tuple(self._end(tokens, values if request.logprobs else None, stops) for tokens, values in rows)

    def _end(self, tokens: list[int], logprobs: list[float] | None, stops: set[int]) -> Completion:
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), None)
        reason: FinishReason = "length" if end is None else "stop"
        kept = logprobs[:end] if logprobs is not None else None
        return Completion(token_ids=tokens[:end], finish_reason=reason, weight_version=self._version, logprobs=kept)

    # ---- weights -------------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status not in (EngineStatus.AWAKE, EngineStatus.WEIGHTS_ONLY):
            raise EngineStateError(f"update_weights while the engine is {self._status}; call wake_up first")
        mine = dict(self._model.named_parameters())
        for name, tensor in stage(buckets, mine).items():  # all of them fit, or none is used
            mine[name].copy_(tensor)
        self._version = version

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        names = tied_names(self._model)
        return {names[name]: WeightChecksum(*tensor_checksum(parameter)) for name, parameter in self._model.named_parameters()}

    def reset_cache(self) -> None:
        self._alive()  # nothing is kept between two calls of `generate`

    # ---- memory --------------------------------------------------------------------------------------------------------------------------

    def sleep(self, level: int) -> None:
        self._alive()
        if level != 1:
            raise CapabilityError(f"sleep(level={level}): engine 'acme' has level 1, which keeps the weights on the host")
        self._model.to("cpu")
        self._status = EngineStatus.ASLEEP

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self._alive()
        if self._status is EngineStatus.ASLEEP and "weights" in tags:
            self._model.to(self.setup.device)
            self._status = EngineStatus.WEIGHTS_ONLY
        if self._status is EngineStatus.WEIGHTS_ONLY and "kv_cache" in tags:
            self._status = EngineStatus.AWAKE

    def shutdown(self) -> None:
        self._model = None
        self._status = EngineStatus.UNUSABLE

    def _alive(self) -> None:
        if self._status is EngineStatus.UNUSABLE:
            raise EngineStateError("the engine was shut down")


def _draw(logits: torch.Tensor, sampling: SamplingParams, generator: torch.Generator) -> torch.Tensor:
    """One token id for each row. logits: [n, V]; returns [n]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    kept = filter_logits(logits / sampling.temperature, sampling)
    return torch.multinomial(kept.softmax(-1), 1, generator=generator).squeeze(-1)
