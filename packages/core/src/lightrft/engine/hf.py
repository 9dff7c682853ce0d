"""The reference engine: a transformers model of its own, on the group's first rank. Slow and plain; the others are compared with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from lightrft.engine.adapted import Adapted
from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.engine.hf_generate import Truncate, generate, truncate_by
from lightrft.engine.model_facts import model_facts
from lightrft.engine.quiet import no_progress_bars
from lightrft.engine.request_images import RequestImages
from lightrft.errors import EngineStateError
from lightrft.types import EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.adapters import matrices_of, staged_adapters
from lightrft.weights.buckets import WeightBucket, saved_buffers, tied_names
from lightrft.weights.checksum import WeightChecksum
from lightrft.weights.experts import checksums_of
from lightrft.weights.model_class import keep_soft_cap, language_model_class
from lightrft.weights.staging import stage


class HFEngine(InferenceEngine):
    """See `InferenceEngine`. The KV cache lives only inside `generate`, so AWAKE and WEIGHTS_ONLY hold the same memory."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        config = AutoConfig.from_pretrained(setup.model_path, trust_remote_code=setup.trust_remote_code)
        with no_progress_bars():
            model: Any = language_model_class(config).from_pretrained(
                setup.model_path, dtype=setup.dtype, trust_remote_code=setup.trust_remote_code
            )
        self._model: Any = keep_soft_cap(model).to(setup.device).eval().requires_grad_(False)
        self._adapted = Adapted(self._model)
        facts = model_facts(setup.model_path, trust_remote_code=setup.trust_remote_code)
        self._eos, self._vocab_size = facts.eos_token_ids, facts.vocab_size
        self._tokenizer: Any = None  # for stop strings
        self._images = RequestImages(setup)
        self._version = 0
        self._weights_held = True
        self._buffers: dict[str, torch.Tensor] = {}  # all of them, while level 2 has dropped the weights
        self._status = EngineStatus.AWAKE

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def model(self) -> Any:
        """The HF model that samples; for checks that read its tensors."""
        return self._model

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        if self._status is not EngineStatus.AWAKE:
            raise EngineStateError(f"generate while the engine is {self._status}; call wake_up first")
        if not self._weights_held:
            raise EngineStateError("generate after sleep(level=2) dropped the weights; call update_weights first")
        limit = self.setup.max_model_len
        check_requests(requests, vocab_size=self._vocab_size, max_model_len=limit)
        return generate(
            self._model,
            requests,
            sampling,
            eos_token_ids=self._eos,
            pad_token_id=self._eos[0] if self._eos else 0,
            batch_size=self.setup.max_batch_size,
            max_model_len=limit,
            version=self._version,
            report=self.report,
            finished=self.finished,
            truncate=self._truncate(sampling),
            read_images=self._images.read,
        )

    @torch.no_grad()
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status is EngineStatus.ASLEEP or self._status is EngineStatus.UNUSABLE:
            raise EngineStateError(f"update_weights while the engine is {self._status}; call wake_up first")
        expected = self._held()
        staged = stage(buckets, expected)
        self._adapted.replace({})
        for name, tensor in staged.items():
            expected[name].copy_(tensor)
        self._weights_held = True
        self._version = version

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._held().items()}

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        """Without buffers in less than float32, as which they are sent."""
        names = tied_names(self._model)
        sent_as_held = {name: b for name, b in saved_buffers(self._model).items() if b.dtype not in (torch.bfloat16, torch.float16)}
        held = {names[name]: p for name, p in self._model.named_parameters()} | {(name,): b for name, b in sent_as_held.items()}
        return checksums_of(held)

    def unadaptable(self, modules: Collection[str]) -> list[str]:
        matrices = matrices_of(self._model)
        return [module for module in modules if module not in matrices]

    def update_adapters(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status is EngineStatus.ASLEEP or self._status is EngineStatus.UNUSABLE:
            raise EngineStateError(f"update_adapters while the engine is {self._status}; call wake_up first")
        setup = self.setup
        shapes = matrices_of(self._model)
        self._adapted.replace(staged_adapters(buckets, shapes, rank=setup.adapter_rank, dtype=setup.dtype, device=setup.device))
        self._version = version

    def adapter_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        self._alive()
        return self._adapted.checksums()

    def reset_cache(self) -> None:
        """Nothing outlives a call to `generate` here."""
        self._alive()

    def sleep(self, level: int) -> None:
        self._alive()
        if self._status is EngineStatus.ASLEEP:
            return
        if level == 1:
            self._model.to("cpu")
            self._adapted.to("cpu")
        else:
            self._buffers = {name: buffer.to("cpu") for name, buffer in self._model.named_buffers()}
            self._adapted.replace({})
            self._model.to("meta")
            self._weights_held = False
        self._status = EngineStatus.ASLEEP

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self._alive()
        if self._status is EngineStatus.ASLEEP and "weights" in tags:
            self._bring_weights()
            self._status = EngineStatus.WEIGHTS_ONLY
        if self._status is EngineStatus.WEIGHTS_ONLY and "kv_cache" in tags:
            self._status = EngineStatus.AWAKE

    def shutdown(self) -> None:
        self._model = None
        self._status = EngineStatus.UNUSABLE

    def _truncate(self, sampling: SamplingParams) -> Truncate:
        if self._tokenizer is None and sampling.stop:
            self._tokenizer = AutoTokenizer.from_pretrained(self.setup.model_path, trust_remote_code=self.setup.trust_remote_code)
        return truncate_by(self._tokenizer, sampling)

    def _bring_weights(self) -> None:
        if self._weights_held:
            self._model.to(self.setup.device)
            self._adapted.to(self.setup.device)
        else:
            config = self._model.config
            fresh = language_model_class(config).from_config(config, dtype=self.setup.dtype, trust_remote_code=self.setup.trust_remote_code)
            for name, buffer in self._buffers.items():  # in the dtypes that `from_pretrained` gave them
                owner, _, attribute = name.rpartition(".")
                setattr(fresh.get_submodule(owner), attribute, buffer)
            self._model = keep_soft_cap(fresh).to(self.setup.device).eval().requires_grad_(False)
            self._adapted = Adapted(self._model)

    def _held(self) -> dict[str, torch.Tensor]:
        """What `update_weights` replaces: parameters, a tied one once, and the buffers of the state dict."""
        return dict(self._model.named_parameters()) | saved_buffers(self._model)

    def _alive(self) -> None:
        if self._model is None:
            raise EngineStateError("the engine was shut down")
