"""The contract of an inference engine: the methods that an engine implements, and what each must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist

from lightrft.engine.progress import Finished, Report, unread, unwatched
from lightrft.errors import CapabilityError
from lightrft.types import Ended, EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.checksum import WeightChecksum
from lightrft.weights.manifest import expected_shapes

WakeTag = Literal["weights", "kv_cache"]
ALL_TAGS: tuple[WakeTag, ...] = ("weights", "kv_cache")


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What an engine is built from.

    `model_path` is a HF folder; its weights are version 0. `max_model_len` bounds prompt plus completion, in tokens; `max_batch_size`
    bounds the prompts in one forward. `rank` and `group` are those of the ranks that share this engine; `seed` is the same on them and
    another one in each such group, for an engine that draws from a generator of its own. `options` are those of the engine's library
    that the user set (`engine_args`), which were checked; they win over the engine's own choice. `adapter_rank` above 0 says that syncs
    bring adapters of at most that rank (`update_adapters`). `deterministic` asks for what the capability of that name says.
    """

    model_path: str
    dtype: torch.dtype
    device: torch.device
    seed: int
    max_model_len: int
    max_batch_size: int
    mem_util: float
    trust_remote_code: bool
    rank: int
    group_size: int
    group: dist.ProcessGroup | None
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter_rank: int = 0
    deterministic: bool = False


class InferenceEngine(ABC):
    """One inference engine, built awake. No method is collective over the world.

    A `single_leader` engine exists on its group's first rank only. An `spmd` engine exists on every rank of its group, and all of them make
    the same calls with the same arguments. The controller keeps that order; an engine never sees prompts of other groups.

    `report` and `finished` are the controller's to set. An engine that learns of tokens or ended completions at no cost may tell `report`
    while it generates, and give `finished` the output of each request that has ended, in any order; one that does not tells nothing.
    Both return at once and raise nothing.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self.report: Report = unwatched
        self.finished: Finished = unread
        self._not_generated: list[tuple[Sequence[Request], SamplingParams]] = []

    @property
    @abstractmethod
    def status(self) -> EngineStatus:
        """AWAKE, WEIGHTS_ONLY, ASLEEP, or UNUSABLE after a failure that left the weights in doubt."""

    @property
    def cache_block(self) -> int:
        """Tokens in one block of its prefix cache: a prompt with fewer is never found in it. 0: it has none, or none of a known size.

        The kit, and the verification of a sync, ask with prompts of more than two blocks, so that a stale block shows. Not collective.
        """
        return 0

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What its library was built with, by the library's names; empty: nothing to say. Written to the run folder. Not collective."""
        return {}

    @classmethod
    def read_sampling(cls, value: Any) -> SamplingParams:
        """Our dataclass, or a mapping of its fields; an engine may take its library's own names and objects as well. On every rank.

        Raises:
            ValueError: something else, an unknown name, or a value that has no meaning here.
        """
        return SamplingParams.coerce(value)

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        """Draws `sampling.n` completions for each request and returns one output per request, in the order of the requests.

        Log-probabilities are natural logs of the untempered, unfiltered distribution, one per sampled token, where the request asks. A stop
        token stays in the completion. An empty list of requests returns an empty list.

        Raises:
            EngineStateError: not AWAKE.
            ValueError: an empty prompt, a token id outside the vocabulary, or a prompt of `max_model_len` tokens or more (which request).
        """

    def start(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begins to draw `sampling.n` completions for each request, which `poll` gives: the same that `generate` would draw.

        More may be started while others are drawn. Under the capability `stepping` they join those at once. Requests have no images, and
        `id`s that no request has which is being drawn. Raises as `generate`; nothing of the call is begun then.
        """
        self._not_generated.append((requests, sampling))

    def poll(self) -> list[Ended]:
        """Draws further, and returns the completions that have ended since the last call, each once, in any order; there may be none.

        Where nothing is being drawn it returns at once. Without the capability `stepping` it returns all that was started. Raises as
        `generate`.
        """
        started, self._not_generated = self._not_generated, []
        outputs = [output for requests, sampling in started for output in self.generate(requests, sampling)]
        return [Ended(id=o.id, index=index, completion=c) for o in outputs for index, c in enumerate(o.completions)]

    def abort(self) -> None:
        """Forgets what was started and has not ended. Idempotent."""
        self._not_generated = []

    @abstractmethod
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        """Replaces all weights; adapters that were given before are gone. Allowed while AWAKE or WEIGHTS_ONLY.

        After it returns, no token comes from older weights. Buckets may be read only once and only in order; their tensors may be reused by
        the sender once the next bucket is asked for.

        Raises:
            WeightSyncError: a parameter is missing, unknown, or of another shape or dtype, named; the old weights stay, or status becomes
                UNUSABLE.
            EngineStateError: ASLEEP.
        """

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and full shapes of the weights that `update_weights` needs: those of the folder that the engine was built from.

        Empty where that is not known; then nothing is compared before a sync. Override where the engine knows other names.
        """
        return expected_shapes(self.setup.model_path)

    def weight_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        """Of each tensor that this rank holds now, under the names of the weights that were laid into it (several where they are fused).

        Of experts that were sent in one tensor [E, ...] each has a checksum of its own, under `weights.experts.expert_name`: two that are
        exchanged leave that of all as it is.

        Read from the tensors themselves, never remembered. Under the capability `weight_checksums`, while AWAKE or WEIGHTS_ONLY. A
        tensor that is held in another form than it was sent in is left out; a quantised one may be given by the checksum of what it was
        made from, if the engine compared the two when it was made, and compares its codes now with those.

        Raises:
            CapabilityError: the engine does not declare it.
        """
        raise CapabilityError(
            f"{type(self).__name__} gives no checksums of its weights: it does not have the capability 'weight_checksums'"
        )

    def unadaptable(self, modules: Collection[str]) -> list[str]:
        """Those of these modules (their names in the model without adapters) that it cannot adapt. Under the capability `adapters`.

        Raises:
            CapabilityError: the engine does not declare it.
        """
        raise CapabilityError(_no_adapters(self))

    def update_adapters(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        """Replaces all adapters and leaves the other weights as they are. Under the capability `adapters`, with `setup.adapter_rank`.

        For each adapted module come A [rank, in] and B [out, rank] (`weights.adapters.adapter_names`): the module then gives W x + B A x.
        B holds the scale, nothing else is to be multiplied in. A module of which nothing comes has no adapter afterwards. Else as
        `update_weights`: no token comes from older ones after it returns, and buckets are read in order, once.

        Raises:
            WeightSyncError: a module that it does not know, an A without its B, or another shape, dtype or rank, named; the old ones stay,
                or status becomes UNUSABLE.
            EngineStateError: ASLEEP.
            CapabilityError: the engine does not declare it.
        """
        raise CapabilityError(_no_adapters(self))

    def adapter_checksums(self) -> Mapping[tuple[str, ...], WeightChecksum]:
        """As `weight_checksums`, of the adapters that this rank holds now, read from where it computes with them; of all of them: one
        that was sent and is not here never arrived. A module without one may be left out, or have the checksum of nothing.
        """
        raise CapabilityError(_no_adapters(self))

    @abstractmethod
    def reset_cache(self) -> None:
        """Forgets everything computed with older weights: prefix cache, multimodal encoder cache."""

    @abstractmethod
    def sleep(self, level: int) -> None:
        """AWAKE or WEIGHTS_ONLY to ASLEEP: level 1 moves weights to host memory, level 2 drops them. Both drop the KV cache. Idempotent."""

    @abstractmethod
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        """Brings back the named parts: weights gives WEIGHTS_ONLY, weights and kv_cache gives AWAKE. Idempotent.

        After level 2 the weights are allocated but undefined until `update_weights`; `generate` raises EngineStateError until then.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Frees everything, child processes included. Idempotent; any later call but this one raises EngineStateError."""


def _no_adapters(engine: InferenceEngine) -> str:
    return f"{type(engine).__name__} takes no adapters: it does not have the capability 'adapters'; use lora_sync merged"
