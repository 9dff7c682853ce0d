"""vLLM as an engine: one LLM on every rank of its group, in the trainer's own process, its tensors updated in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightrft.distributed.collectives import gather_objects
from lightrft.engine.base import EngineSetup, InferenceEngine, WakeTag
from lightrft.engine.checks import check_requests
from lightrft.engine.hf_decoding import has_plain_cache
from lightrft.engine.model_facts import model_facts
from lightrft.engine.request_images import RequestImages
from lightrft.errors import CapabilityError, EngineError, EngineStateError, ModelError, WeightSyncError
from lightrft.types import Completion, Ended, EngineStatus, FinishReason, Request, RequestOutput, SamplingParams
from lightrft.weights.adapters import matrices_of, staged_adapters
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.checksum import WeightChecksum
from lightrft.weights.fused_fingerprints import OwnChecksum, OwnChecksums, read_own_checksums
from lightrft.weights.hf_names import FileNames
from lightrft.weights.manifest import expected_shapes
from lightrft_vllm.adapters import put_adapters, read_adapters, room_for, unadaptable
from lightrft_vllm.guests import (
    as_it_was,
    default_group_kept,
    end_groups,
    give_classes_back,
    keep_linear_layers_plain,
    make_deterministic,
    no_bars,
    no_shared_memory,
    rotate_heads_in_torch,
    set_environment,
    snapshot,
)
from lightrft_vllm.loading import load_and_pack, load_straight, loads_past_reload, loads_straight
from lightrft_vllm.nesting import insert_missing_levels
from lightrft_vllm.prompts import vllm_prompt
from lightrft_vllm.quantised import forget_what_was_made, quantisation_problems, read_made, watch_quantisation
from lightrft_vllm.stepping import Stepping, each_as_it_ends
from lightrft_vllm.weights import WeightStream, own_names, pack_experts_again

CPU_KV_CACHE_BYTES = 2**30
"""Of each rank, on the CPU, where VLLM_CPU_KVCACHE_SPACE does not say otherwise; vLLM would take a fraction of the whole memory."""

CPU_BATCH_TOKENS = 4096
"""Of one forward, at most, on the CPU; one prompt always fits."""

QUANTISING = ("quantization", "quantization_config")
"""vLLM's options with which it quantises weights as they are loaded."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class VLLMEngine(InferenceEngine):
    """See `InferenceEngine`. Prompts and completions are token ids; text is made only to look for stop strings."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._facts = model_facts(setup.model_path, trust_remote_code=setup.trust_remote_code)
        self._images = RequestImages(setup)
        shapes = expected_shapes(setup.model_path)
        self._names = FileNames(setup.model_path, shapes, trust_remote_code=setup.trust_remote_code)
        self._shapes = {name: shapes[name] for name in self._names.needed()}
        self._check_libraries()
        self._has_tokenizer = any((Path(setup.model_path) / name).exists() for name in TOKENIZER_FILES)
        self._can_sleep = setup.device.type == "cuda"
        self._shares_group = dist.is_initialized()
        set_environment(setup.device.type)
        if setup.deterministic:
            make_deterministic(setup.device)
        from vllm import LLM  # after the environment that it reads at import

        keep_linear_layers_plain(setup.device.type)
        rotate_heads_in_torch(setup.device.type)
        if self._reads_images:
            insert_missing_levels()
        if any(setup.options.get(name) for name in QUANTISING):
            watch_quantisation()
        classes = snapshot(self._names.model())
        with as_it_was(), no_shared_memory(setup.device.type), no_bars(setup.device.type):
            self._llm: Any = self._built(LLM)
        self._llm.apply_model(partial(give_classes_back, before=classes))
        self._parameters: frozenset[str] = frozenset(self._llm.apply_model(_parameter_names)[0])
        self._check_quantised()
        self._adapted: tuple[str, ...] = ()
        self._adapter: Any = None  # vLLM's request of the present one
        self._straight = setup.device.type == "cuda" and not setup.adapter_rank and self._llm.apply_model(loads_straight)[0]
        self._checksums = OwnChecksums(
            gather_objects(self._read_checksums(), group=setup.group),
            folder=setup.model_path,
            dtype=setup.dtype,
            sendable=self._own_names(),
            stacks=self._names.stacks(),
        )
        self._num_synced = 0
        self._version = 0
        self._weights_held = True
        self._status = EngineStatus.AWAKE

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Of vLLM's EngineArgs."""
        return self._arguments() | dict(self.setup.options)

    @classmethod
    def read_sampling(cls, value: Any) -> SamplingParams:
        """Our SamplingParams, a mapping of its fields or of vLLM's (`max_tokens`), or vLLM's own object."""
        from lightrft_vllm.sampling import read_sampling

        return read_sampling(value)

    @property
    def _reads_images(self) -> bool:
        return hasattr(self._names.model().config, "vision_config")

    @property
    def status(self) -> EngineStatus:
        return self._status

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        from lightrft_vllm.sampling import to_vllm

        self._check(requests, sampling)
        if not requests:
            return []
        params = to_vllm(sampling, requests, eos_token_ids=self._facts.eos_token_ids)
        prompts = [vllm_prompt(request) for request in requests]
        ended: dict[int, RequestOutput] = {}

        def take(at: int, answer: Any) -> None:
            output = ended[at] = self._output(requests[at], answer, sampling)
            self.report(tokens=sum(len(c.token_ids) for c in output.completions), completions=len(output.completions))
            self.finished(output)

        try:
            with each_as_it_ends(self._llm, take):
                answers = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        except Exception as error:
            if not self._llm.llm_engine.has_unfinished_requests():  # it refused one, and took back those before it
                self._refused(requests, error)
            self._status = EngineStatus.UNUSABLE
            raise EngineError(f"vLLM failed in generate, {len(requests)} prompts outstanding: {type(error).__name__}: {error}") from error
        self._images.compare(requests, [answer.prompt_token_ids for answer in answers])
        return [ended[index] for index in range(len(requests))]

    def start(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        self._check(requests, sampling)
        try:
            self._stepping.start(requests, sampling, adapter=self._adapter)
        except Exception as error:  # it took back those before the one that it refuses
            self._refused(requests, error)
            raise

    def poll(self) -> list[Ended]:
        try:
            ended = self._stepping.step()
        except Exception as error:
            self._status = EngineStatus.UNUSABLE
            raise EngineError(
                f"vLLM failed in a step, {self._stepping.requests} completions outstanding: {type(error).__name__}: {error}"
            ) from error
        if ended:
            self.report(tokens=sum(len(one.completion.token_ids) for one in ended), completions=len(ended))
        return ended

    def abort(self) -> None:
        self._alive()
        self._stepping.abort()

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status in (EngineStatus.ASLEEP, EngineStatus.UNUSABLE):
            raise EngineStateError(f"update_weights while the engine is {self._status}; call wake_up first")
        stream = WeightStream(
            buckets, dtype=self.setup.dtype, shapes=self._shapes, names=self._names, held=self._parameters, copied=not self._straight
        )
        try:
            self._load(iter(stream))
            stream.check_complete()
            self._check_quantised()
        except Exception as error:
            self._status = EngineStatus.UNUSABLE
            raise error if isinstance(error, WeightSyncError) else WeightSyncError(f"vLLM failed to load weights: {error}") from error
        self._adapter, self._adapted = None, ()  # vLLM takes all adapters off when it loads weights
        self.reset_cache()
        self._weights_held = True
        self._version = version

    def unadaptable(self, modules: Collection[str]) -> list[str]:
        self._alive()
        found: list[str] = self._llm.apply_model(partial(unadaptable, modules=modules))[0]
        return found

    def update_adapters(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        """Under a name of its own each time, so that no block of the prefix cache of an older one fits."""
        from vllm.lora.request import LoRARequest

        setup = self.setup
        if self._status in (EngineStatus.ASLEEP, EngineStatus.UNUSABLE):
            raise EngineStateError(f"update_adapters while the engine is {self._status}; call wake_up first")
        shapes = matrices_of(self._names.model())
        adapters = staged_adapters(buckets, shapes, rank=setup.adapter_rank, dtype=setup.dtype, device=torch.device("cpu"))
        self._num_synced += 1
        try:
            put = partial(put_adapters, adapters=adapters, rank=room_for(setup.adapter_rank), number=self._num_synced)
            self._llm.apply_model(put)
        except Exception as error:
            self._status = EngineStatus.UNUSABLE
            raise WeightSyncError(f"vLLM failed to load adapters: {error}") from error
        self._adapter = LoRARequest(f"sync-{self._num_synced}", self._num_synced, "in memory")
        self._adapted = tuple(adapters)
        self.reset_cache()
        self._version = version

    def adapter_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        self._alive()
        found: dict[tuple[str, ...], WeightChecksum] = self._llm.apply_model(partial(read_adapters, modules=self._adapted))[0]
        return found

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._names.module_shapes()

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        """Without tensors whose key-value heads several ranks hold. Of a quantised one, that of what was loaded, as long as the codes are
        those that were compared with it.
        """
        self._alive()
        return self._checksums.named(self._read_checksums())

    def reset_cache(self) -> None:
        self._alive()
        if not self._llm.reset_prefix_cache():
            self._status = EngineStatus.UNUSABLE
            raise WeightSyncError("vLLM did not reset its prefix cache: blocks of older weights are in use")
        self._llm.llm_engine.reset_encoder_cache()  # what it computed of images

    def sleep(self, level: int) -> None:
        self._alive()
        if not self._can_sleep:
            raise CapabilityError(f"sleep(level={level}): vLLM sleeps on CUDA only, this engine is on {self.setup.device.type}")
        if self._status is EngineStatus.ASLEEP:
            return
        self._llm.sleep(level=level)
        self._weights_held = self._weights_held and level == 1
        self._status = EngineStatus.ASLEEP

    @property
    def cache_block(self) -> int:
        self._alive()
        return int(self._llm.llm_engine.vllm_config.cache_config.block_size)

    def wake_up(self, tags: Collection[WakeTag]) -> None:
        self._alive()
        if self._status is EngineStatus.ASLEEP and "weights" in tags:
            self._wake("weights", EngineStatus.WEIGHTS_ONLY)
        if self._status is EngineStatus.WEIGHTS_ONLY and "kv_cache" in tags:
            self._wake("kv_cache", EngineStatus.AWAKE)

    def shutdown(self) -> None:
        self._status = EngineStatus.UNUSABLE
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        with default_group_kept(self._shares_group):
            llm.llm_engine.engine_core.shutdown()

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _stepping(self) -> Stepping:
        return Stepping(self._llm, eos_token_ids=self._facts.eos_token_ids, completion=self._completion)

    def _check(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Raises as `generate`."""
        if self._status is not EngineStatus.AWAKE:
            raise EngineStateError(f"generate while the engine is {self._status}; call wake_up first")
        if not self._weights_held:
            raise EngineStateError("generate after sleep(level=2) dropped the weights; call update_weights first")
        check_requests(requests, vocab_size=self._facts.vocab_size, max_model_len=self.setup.max_model_len)
        self._images.check(requests)
        if sampling.stop and not self._has_tokenizer:
            raise ValueError(f"stop={sampling.stop!r} needs a tokenizer, and {self.setup.model_path!r} has none")

    def _built(self, make: Callable[..., Any]) -> Any:
        try:
            return make(**self.arguments)
        except Exception as error:
            end_groups(keep_default=self._shares_group)
            if not isinstance(error, (AttributeError, ImportError, KeyError, NotImplementedError, OSError, ValueError)):
                raise
            name = f"{type(self._names.model()).__name__}{', which reads images' if self._reads_images else ''}"
            raise ModelError(
                f"vLLM does not start with model {self.setup.model_path!r} ({name}): {type(error).__name__}: "
                f"{' '.join(str(error).split()):.300}; --engine_type hf runs what transformers runs"
            ) from error

    def _load(self, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._llm.apply_model(forget_what_was_made)
        if self._straight:
            self._llm.apply_model(partial(load_straight, stream=stream))
            return
        if self.setup.device.type == "cpu":
            if self._llm.apply_model(loads_past_reload)[0]:
                self._llm.apply_model(partial(load_and_pack, stream=stream))
                return
            self._llm.apply_model(pack_experts_again)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})

    def _wake(self, tag: WakeTag, then: EngineStatus) -> None:
        try:
            self._llm.wake_up(tags=[tag])
        except Exception:  # too little memory, for one: a part of it is mapped, and nobody knows which
            self._status = EngineStatus.UNUSABLE
            raise
        self._status = then

    def _own_names(self) -> dict[str, tuple[str, str]]:
        """By vLLM's name of a weight before it fuses some: the name that it is sent by, and its name in the folder."""
        files = self._names.one_to_one()
        [own] = self._llm.apply_model(partial(own_names, files=list(files.values())))
        return {own[file]: (sent, file) for sent, file in files.items()}

    def _read_checksums(self) -> dict[str, OwnChecksum]:
        [found] = self._llm.apply_model(partial(read_own_checksums, dtype=self.setup.dtype))
        [made] = self._llm.apply_model(read_made)
        checksums: dict[str, OwnChecksum] = {name.replace(".base_layer.", "."): value for name, value in (found | made).items()}
        return checksums

    def _check_quantised(self) -> None:
        """Raises WeightSyncError where what vLLM quantised is not what was loaded, to half a quantum."""
        [problems] = self._llm.apply_model(quantisation_problems)
        if problems:
            raise WeightSyncError(f"vLLM quantised weights wrongly: {problems[0]} ({len(problems)} in all)")

    def _arguments(self) -> dict[str, Any]:
        setup = self.setup
        arguments: dict[str, Any] = dict(
            model=setup.model_path,
            dtype=str(setup.dtype).removeprefix("torch."),
            seed=setup.seed,
            max_model_len=setup.max_model_len,
            trust_remote_code=setup.trust_remote_code,
            tensor_parallel_size=setup.group_size,
            # Without a process group (one rank alone) there is nobody to be launched with.
            distributed_executor_backend="external_launcher" if self._shares_group else "uni",
            skip_tokenizer_init=not self._has_tokenizer,
            generation_config="vllm",  # nothing but our own sampling parameters
            logprobs_mode="raw_logprobs",  # of the untempered, unfiltered distribution
            disable_log_stats=True,
            use_tqdm_on_load=False,  # no bars in the run's log
            mm_processor_cache_gb=0,  # images of a rollout seldom come again, and would fill host memory
        )
        if self._reads_images and not self._images.reads_videos():
            arguments["limit_mm_per_prompt"] = {"video": 0}  # else memory is put by for them, and their processor has to be there
        if setup.adapter_rank:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room_for(setup.adapter_rank)}
        if setup.device.type == "cuda":
            return arguments | {"gpu_memory_utilization": setup.mem_util, "enable_sleep_mode": True}
        own_size = {} if os.environ.get("VLLM_CPU_KVCACHE_SPACE") else {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
        # A prompt split over two forwards ends in vLLM 0.32 with an error where its request has a seed: a generator on the CPU cannot
        # be set back by the draw that is thrown away.
        whole_prompts = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(CPU_BATCH_TOKENS, setup.max_model_len)}
        if not has_plain_cache(self._names.model()):  # vLLM keeps recurrent states for its prefix cache only where it may divide prompts
            whole_prompts["enable_prefix_caching"] = False
        return arguments | {"enforce_eager": True} | own_size | whole_prompts

    def _check_libraries(self) -> None:
        """Raises ModelError where vLLM would only say that the model "failed to be inspected"."""
        if self._reads_images and find_spec("torchvision") is None:
            raise ModelError(
                f"model {self.setup.model_path!r} reads images, and vLLM needs torchvision for such a model, also on text alone: install "
                "the torchvision of this torch, or use --engine_type hf"
            )

    def _refused(self, requests: Sequence[Request], error: Exception) -> None:
        """Raises ValueError where vLLM refused a prompt: naming the first that is too long with its images, else what vLLM said."""
        from vllm.exceptions import VLLMValidationError

        if isinstance(error, (ValueError, VLLMValidationError)):
            for request in requests:
                if request.images:
                    self._images.read(request)
            raise ValueError(f"vLLM refuses a prompt: {' '.join(str(error).split()):.300}") from error

    def _output(self, request: Request, answer: Any, sampling: SamplingParams) -> RequestOutput:
        drawn = [answer.outputs[0]] * sampling.n if sampling.temperature == 0 else sorted(answer.outputs, key=lambda c: c.index)
        completions = tuple(self._completion(request, c) for c in drawn)
        return RequestOutput(id=request.id, prompt_token_ids=request.prompt_token_ids, completions=completions)

    def _completion(self, request: Request, drawn: Any) -> Completion:
        return Completion(
            token_ids=list(drawn.token_ids),
            finish_reason=_reason(drawn.finish_reason),
            weight_version=self._version,
            logprobs=list(drawn.logprobs.logprobs) if request.logprobs else None,
        )

    def _alive(self) -> None:
        if self._status is EngineStatus.UNUSABLE:
            raise EngineStateError("the engine is unusable: it was shut down, or failed while its weights changed")


def _parameter_names(model: torch.nn.Module) -> list[str]:
    return [name.replace(".base_layer.", ".") for name, _ in model.named_parameters(remove_duplicate=False)]


def _reason(value: str | None) -> FinishReason:
    return "stop" if value == "stop" else "length" if value == "length" else "abort"
