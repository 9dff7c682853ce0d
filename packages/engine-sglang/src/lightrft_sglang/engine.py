"""SGLang as an engine: on the first rank of its group, its schedulers in processes of their own, fed by shared memory or CUDA IPC."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoTokenizer

from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.engine.image_reader import PromptWithImages
from lightrft.engine.model_facts import model_facts
from lightrft.engine.request_images import RequestImages
from lightrft.engine.stop_text import cut_at_stop
from lightrft.errors import CapabilityError, EngineError, EngineStateError, ModelError, WeightSyncError
from lightrft.types import Completion, Ended, EngineStatus, FinishReason, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket
from lightrft.weights.checksum import WeightChecksum
from lightrft.weights.fused_fingerprints import OwnChecksum, OwnChecksums
from lightrft.weights.hf_names import FileNames
from lightrft.weights.manifest import expected_shapes
from lightrft.weights.model_class import reads_images
from lightrft.weights.verify import over_group
from lightrft_sglang.checksums import LOADER, own_names, question, read
from lightrft_sglang.process import SGLangProcess
from lightrft_sglang.sampling import left_to_us, read_sampling, to_sglang

CPU_KV_TOKENS = 16_384
POLL_S = 0.01
"""How long a poll waits for a completion to end: so long a turn that follows may wait to be started."""
FLUSH_TRIES, FLUSH_PAUSE_S = 200, 0.02
"""A flush is refused while the last request is still being put away, some milliseconds after its answer."""


class SGLangEngine(InferenceEngine):
    """See `InferenceEngine`. Prompts and completions are token ids; text is made on our side, only to look for stop strings.

    Sleep needs CUDA and torch_memory_saver; SGLang has no kernels for per-request seeds on every backend, so `seed` is not declared.
    """

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._facts = model_facts(setup.model_path, trust_remote_code=setup.trust_remote_code)
        shapes = expected_shapes(setup.model_path)
        self._names = FileNames(setup.model_path, shapes, trust_remote_code=setup.trust_remote_code)
        self._shapes = {name: shapes[name] for name in self._names.needed()}
        self._on_cuda = setup.device.type == "cuda"
        if not self._on_cuda:
            os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # read at import, here and in the children
        self._process = self._started()
        self._tokenizer: Any = None  # for stop strings
        self._ended: list[Ended] = []
        self._images = RequestImages(setup)
        self._version = 0
        self._status = EngineStatus.AWAKE
        self._checksums = OwnChecksums(
            self._read_checksums(),
            folder=setup.model_path,
            dtype=setup.dtype,
            sendable=own_names(self._names.one_to_one()),
            stacks=self._names.stacks(),
        )

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Of SGLang's ServerArgs."""
        return self._arguments() | dict(self.setup.options)

    @classmethod
    def read_sampling(cls, value: Any) -> SamplingParams:
        """Our SamplingParams, or a mapping of its fields or of SGLang's."""
        return read_sampling(value)

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def cache_block(self) -> int:
        return self._process.page_size

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        asked = self._asked(requests, sampling)
        each = len(asked) // max(len(requests), 1)
        drawn: list[dict[int, Completion]] = [{} for _ in requests]
        outputs: dict[int, RequestOutput] = {}

        def ended(index: int, answer: Any) -> None:
            at, number = divmod(index, each)
            drawn[at][number] = self._completion(requests[at], answer, sampling)
            if len(drawn[at]) == each:
                outputs[at] = self._output(requests[at], [drawn[at][k] for k in range(each)], sampling)

        self._call_each("async_generate", asked, ended)
        return [outputs[at] for at in range(len(requests))]

    def start(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        asked = self._asked(requests, sampling)
        each = len(asked) // max(len(requests), 1)

        def ended(index: int, answer: Any) -> None:
            at, number = divmod(index, each)
            completion = self._completion(requests[at], answer, sampling)
            indices = [number] if each == sampling.n else range(sampling.n)
            self._ended += [Ended(id=requests[at].id, index=one, completion=completion) for one in indices]

        self._process.begin_each("async_generate", asked, ended)

    def poll(self) -> list[Ended]:
        try:
            self._process.look(POLL_S)
        except EngineError:
            self._status = EngineStatus.UNUSABLE
            raise
        ended, self._ended = self._ended, []
        if ended:
            self.report(tokens=sum(len(one.completion.token_ids) for one in ended), completions=len(ended))
        return ended

    def abort(self) -> None:
        self._alive()
        try:
            self._process.forget()
        except EngineError:
            self._status = EngineStatus.UNUSABLE
            raise
        self._ended = []

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status in (EngineStatus.ASLEEP, EngineStatus.UNUSABLE):
            raise EngineStateError(f"update_weights while the engine is {self._status}; call wake_up first")
        pieces = self._pieces(buckets)
        if not self._on_cuda:  # host memory has the room: what is refused is refused before the first byte moves
            pieces = iter(list(pieces))
        self.reset_cache()  # nothing may be running, and SGLang kills itself where something is
        try:
            self._accepted("begin_weight_update")
            for named in pieces:
                self._accepted("update_weights_from_tensor", named_tensors=named, flush_cache=False)
            self._accepted("end_weight_update")
            self.reset_cache()
        except Exception:
            self._status = EngineStatus.UNUSABLE
            raise
        self._version = version

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._names.module_shapes()

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        """Of all schedulers together. Without tensors whose key-value heads several of them hold."""
        self._alive()
        return over_group([self._checksums.named(own) for own in self._read_checksums()])

    def reset_cache(self) -> None:
        self._alive()
        for _ in range(FLUSH_TRIES):
            if self._call("flush_cache").success:
                return
            time.sleep(FLUSH_PAUSE_S)
        self._status = EngineStatus.UNUSABLE
        raise WeightSyncError(f"SGLang did not flush its cache within {FLUSH_TRIES * FLUSH_PAUSE_S:.0f} s: requests are still running")

    def sleep(self, level: int) -> None:
        self._alive()
        if not self._on_cuda or level != 1:
            where = "SGLang sleeps on CUDA only" if level == 1 else "SGLang keeps its weights in host memory, level 1"
            raise CapabilityError(f"sleep(level={level}): {where}; this engine is on {self.setup.device.type}")
        if self._status is EngineStatus.ASLEEP:
            return
        self.reset_cache()
        self._call("release_memory_occupation", tags=["kv_cache", "weights"])
        self._status = EngineStatus.ASLEEP

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self._alive()
        if self._status is EngineStatus.ASLEEP and "weights" in tags:
            self._call("resume_memory_occupation", tags=["weights"])
            self._status = EngineStatus.WEIGHTS_ONLY
        if self._status is EngineStatus.WEIGHTS_ONLY and "kv_cache" in tags:
            self._call("resume_memory_occupation", tags=["kv_cache"])
            self._status = EngineStatus.AWAKE

    def shutdown(self) -> None:
        self._status = EngineStatus.UNUSABLE
        self._process.shutdown()

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _asked(self, requests: Sequence[Request], sampling: SamplingParams) -> list[dict[str, Any]]:
        """The arguments of SGLang's call for each sample of each request, request by request. Raises as `generate`."""
        if self._status is not EngineStatus.AWAKE:
            raise EngineStateError(f"generate while the engine is {self._status}; call wake_up first")
        limit = self.setup.max_model_len
        check_requests(requests, vocab_size=self._facts.vocab_size, max_model_len=limit)
        prompts = [self._images.read(request) for request in requests]
        # Its own `n` takes no list of return_logprob; copies share their prompt in its prefix cache. Greedy draws are identical.
        each = 1 if sampling.temperature == 0 else sampling.n
        return [
            dict(
                input_ids=prompt.token_ids,
                sampling_params=to_sglang(sampling, room=limit - len(prompt.token_ids), eos_token_ids=self._facts.eos_token_ids),
                return_logprob=request.logprobs,
                image_data=_image_data(prompt),
            )
            for request, prompt in zip(requests, prompts, strict=True)
            for _ in range(each)
        ]

    def _started(self) -> SGLangProcess:
        try:
            return SGLangProcess(self.arguments, environment=self._environment())
        except EngineError as error:
            model = self._names.model()
            if not reads_images(model.config):
                raise
            raise ModelError(
                f"model {self.setup.model_path!r} ({type(model).__name__}) reads images, and this SGLang does not start with it: {error}; "
                "its scheduler said why above; use --engine_type hf"
            ) from error

    def _arguments(self) -> dict[str, Any]:
        setup = self.setup
        arguments: dict[str, Any] = dict(
            model_path=setup.model_path,
            dtype=str(setup.dtype).removeprefix("torch."),
            random_seed=setup.seed,
            # Lengths are bounded on our side, by the token; SGLang would end a completion one token early.
            context_length=setup.max_model_len + 8,
            trust_remote_code=setup.trust_remote_code,
            tp_size=setup.group_size,
            # What a class of transformers has for a default, where config.json is silent, is no end of sequence of this model.
            json_model_override_args=json.dumps({"eos_token_id": list(self._facts.eos_token_ids)}),
            skip_tokenizer_init=True,
            skip_server_warmup=True,
            custom_weight_loader=[LOADER],
            log_level="error",
        )
        if self._on_cuda:
            return arguments | dict(
                mem_fraction_static=setup.mem_util,
                base_gpu_id=setup.device.index or 0,
                enable_memory_saver=True,
                enable_weights_cpu_backup=True,
            )
        return arguments | dict(
            device="cpu",
            attention_backend="torch_native",
            sampling_backend="pytorch",
            # `max_total_tokens` says how large its cache is. This says how much of the memory other processes may take while it starts: the
            # rest. SGLang looks at what is free before and after, and takes what others took in between for weights.
            mem_fraction_static=0.95,
            max_total_tokens=max(CPU_KV_TOKENS, 4 * setup.max_model_len),
            max_running_requests=64,
            disable_overlap_schedule=True,
        )

    def _environment(self) -> dict[str, str]:
        found = {
            "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",  # of the untempered distribution
            "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",  # the 8 tokens above, never used
            "SGLANG_VLM_CACHE_SIZE_MB": "0",  # of what it computed of images: a flush of its cache, after a sync, leaves that there
        }
        if not self._on_cuda and "SGLANG_CPU_OMP_THREADS_BIND" not in os.environ:
            cores = sorted(os.sched_getaffinity(0))
            found["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[rank % len(cores)]) for rank in range(self.setup.group_size))
        return found

    def _read_checksums(self) -> list[dict[str, OwnChecksum]]:
        with tempfile.TemporaryDirectory(prefix="lightrft-checksums-") as folder:
            asked = question(folder, dtype=self.setup.dtype)
            self._accepted("begin_weight_update")
            self._accepted("update_weights_from_tensor", named_tensors=asked, load_format=LOADER, flush_cache=False)
            self._accepted("end_weight_update")
            return read(folder, ranks=self.setup.group_size)

    def _pieces(self, buckets: Iterable[WeightBucket]) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """What SGLang is sent for each bucket. Raises WeightSyncError at a tensor that does not fit, and at the end for what never came."""
        sent: set[str] = set()
        for bucket in map(self._names.convert, buckets):
            named = [(self._name_of(weight), weight.tensor.detach()) for weight in bucket]
            sent.update(name for weight in bucket for name in weight.names)
            # A CPU tensor travels by shared memory, and the storage that was the actor's would move there: a copy does.
            yield [(name, tensor if tensor.is_cuda else tensor.clone()) for name, tensor in named]
        missing = sorted(set(self._shapes) - sent)
        if missing:
            raise WeightSyncError(f"weights are incomplete: {', '.join(missing[:3])} ({len(missing)} in all) never came")

    def _call(self, name: str, **arguments: Any) -> Any:
        try:
            return self._process.call(name, **arguments)
        except EngineError:
            self._status = EngineStatus.UNUSABLE
            raise

    def _call_each(self, name: str, arguments: Sequence[Mapping[str, Any]], ended: Callable[[int, Any], None]) -> None:
        try:
            self._process.call_each(name, arguments, ended)
        except EngineError:
            self._status = EngineStatus.UNUSABLE
            raise
        except ValueError as error:  # what it says of images has their pixels in it
            if not any(one["image_data"] for one in arguments):
                raise
            name = type(self._names.model()).__name__
            raise ModelError(
                f"SGLang does not take what the processor of model {self.setup.model_path!r} ({name}) makes of images: "
                f"{type(error).__name__}: {' '.join(str(error).split()):.60}...; use --engine_type hf, which takes all, or vllm"
            ) from None

    def _accepted(self, name: str, **arguments: Any) -> None:
        try:
            success, message, *_ = self._call(name, **arguments)
        except EngineError as error:
            raise WeightSyncError(str(error)) from error
        if not success:
            raise WeightSyncError(f"SGLang refused {name}: {message}")

    def _name_of(self, weight: Weight) -> str:
        """The name under which its model folder has the tensor; SGLang ignores unknown names, and dies of other shapes."""
        if weight.tensor.dtype != self.setup.dtype and not weight.is_buffer:
            raise WeightSyncError(f"{weight.names[0]} came as {weight.tensor.dtype}, the engine holds {self.setup.dtype}")
        if not self._shapes:
            return weight.names[0]
        name = next((n for n in weight.names if n in self._shapes), None)
        if name is None:
            raise WeightSyncError(f"{weight.names[0]} was sent, which the engine's model does not have")
        if self._shapes[name] != tuple(weight.tensor.shape):
            raise WeightSyncError(f"{name} was sent with shape {tuple(weight.tensor.shape)}, the engine's model has {self._shapes[name]}")
        return name

    def _output(self, request: Request, drawn: list[Completion], sampling: SamplingParams) -> RequestOutput:
        """The whole of a request that has just ended; told, and handed over."""
        repeated = drawn * sampling.n if sampling.temperature == 0 else drawn
        output = RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=tuple(repeated))
        self.report(tokens=sum(len(c.token_ids) for c in repeated), completions=len(repeated))
        self.finished(output)
        return output

    def _completion(self, request: Request, answer: Any, sampling: SamplingParams) -> Completion:
        meta = answer["meta_info"]
        completion = Completion(
            token_ids=list(answer["output_ids"]),
            finish_reason=_reason(meta["finish_reason"]["type"]),
            weight_version=self._version,
            logprobs=[entry[0] for entry in meta["output_token_logprobs"]] if request.logprobs else None,
        )
        ids = left_to_us(sampling)
        if not sampling.stop and not ids:
            return completion

        def decode(token_ids: Sequence[int]) -> str:
            return self._decode(token_ids, skip_special_tokens=sampling.skip_special_tokens)

        return cut_at_stop(completion, stop=sampling.stop, stop_token_ids=ids, min_new_tokens=0, decode=decode)

    def _decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self.setup.model_path, trust_remote_code=self.setup.trust_remote_code)
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def _alive(self) -> None:
        if self._status is EngineStatus.UNUSABLE:
            raise EngineStateError("the engine is unusable: it was shut down, or a scheduler died, or an update failed half-way")


def _image_data(prompt: PromptWithImages) -> list[dict[str, Any]] | None:
    """As its processors leave images, for all of them together: nothing is decoded or encoded again, for none of the copies."""
    return [{"format": "processor_output", **prompt.features}] if prompt.features else None


def _reason(kind: str) -> FinishReason:
    return "stop" if kind == "stop" else "length" if kind == "length" else "abort"
