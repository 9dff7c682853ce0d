"""The engine `continuous`: a transformers model whose completions grow by continuous batching and are scored once all have ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.engine.model_facts import model_facts
from lightrft.errors import CapabilityError, EngineStateError
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket, tied_names
from lightrft.weights.checksum import WeightChecksum, tensor_checksum
from lightrft.weights.staging import stage
from lightrft_continuous.batching import Job, run
from lightrft_continuous.scoring import logprobs_of


class ContinuousEngine(InferenceEngine):
    """See `InferenceEngine`. The paged cache lives within one call of `generate`, so nothing that it holds outlives a sync."""

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
        if not requests:
            return []
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._facts.eos_token_ids)}
        drawn = iter(run(self._model, self._jobs(requests, sampling), self.setup, sampling, stops=stops, seed=requests[0].seed))
        return [self._output(request, [next(drawn) for _ in range(sampling.n)], stops) for request in requests]

    def _jobs(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Job]:
        """n of each prompt; continuous batching computes the beginning that they share once."""
        return [
            Job(list(r.prompt_token_ids), min(sampling.max_new_tokens, self.setup.max_model_len - len(r.prompt_token_ids)))
            for r in requests
            for _ in range(sampling.n)
        ]

    def _output(self, request: Request, drawn: list[list[int]], stops: Collection[int]) -> RequestOutput:
        """Its log-probs are those of a forward pass over what was drawn, for the library's own are of the distribution after temperature
        and filters. That pass begins when the generation thread has ended: the two would use one model in two ways.
        """
        prompt, asked = list(request.prompt_token_ids), request.logprobs
        logprobs: list[list[float] | None] = [*logprobs_of(self._model, prompt, drawn)] if asked else [None] * len(drawn)
        completions = tuple(
            Completion(
                token_ids=tokens,
                finish_reason="stop" if tokens[-1] in stops else "length",
                weight_version=self._version,
                logprobs=values,
            )
            for tokens, values in zip(drawn, logprobs, strict=True)
        )
        output = RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=completions)
        self.report(tokens=sum(map(len, drawn)), completions=len(drawn))
        self.finished(output)
        return output

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
            raise CapabilityError(f"sleep(level={level}): engine 'continuous' has level 1, which keeps the weights on the host")
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
