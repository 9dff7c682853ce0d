"""Generates on all ranks through the engines of their groups. Gather, generate, scatter; sleep and wake; weight sync."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from lightrft.distributed.collectives import (
    agree,
    broadcast_object,
    gather_objects,
    gather_to_first,
    in_words,
    raise_together,
    scatter_from_first,
)
from lightrft.distributed.memory import release_cached
from lightrft.distributed.mesh import Axis
from lightrft.distributed.watchdog import ends_after
from lightrft.distributed.world import World
from lightrft.engine.base import ALL_TAGS, InferenceEngine, WakeTag
from lightrft.engine.checks import needed_capabilities
from lightrft.engine.progress import Finished, on_terminal, progress_line, unread, unwatched
from lightrft.engine.stop_tokens import StopTokens
from lightrft.errors import CapabilityError, EngineError, EngineStateError
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.conversations import Driver, Talks
from lightrft.rollout.ends import Decode
from lightrft.rollout.image_transport import with_images_of_others
from lightrft.rollout.output_checks import Ends, check_completion, check_outputs
from lightrft.rollout.prompts import PromptSource, collect_requests, with_images_read
from lightrft.rollout.request_seeds import derive_seed
from lightrft.rollout.transport import pack_outputs, pack_requests, unpack_outputs, unpack_requests
from lightrft.rollout.waking import wake
from lightrft.rollout.weight_sync import WeightSync
from lightrft.types import Completion, Ended, EngineStatus, Request, RequestOutput, SamplingParams, Video

T = TypeVar("T")
LOGPROBS_REMEDY = "; a run asks for log-probs unless logprob_gap_prompts and verify_sync_every are 0"


class RolloutController(WeightSync):
    """One per rank. Every method is collective over the world; an error on one rank is raised on all of them, together.

    Status: AWAKE after construction. `maybe_sleep` gives ASLEEP; `update_weights` needs weights only, so it leaves a sleeping engine
    WEIGHTS_ONLY, its KV cache coming back with `wake_up`. An engine that fails while its weights change is UNUSABLE from then on.
    """

    def __init__(
        self,
        make_engine: Callable[[], InferenceEngine],
        *,
        spec: EngineSpec,
        world: World,
        group: Axis,
        dtype: torch.dtype,
        sleep_level: int | None,
        verify_checksums: bool = True,
        seed: int,
        tokenize: Callable[[str], list[int]],
        read_sampling: Callable[[Any], SamplingParams] = SamplingParams.coerce,
        generate_timeout_s: float = 0.0,
        make_room: str = "lower engine_mem_util",
        stop_tokens: StopTokens | None = None,
        decode: Decode | None = None,
        takes_adapters: bool = False,
    ) -> None:
        """With `stop_tokens` (the model's own, of all sources) and `decode` (ids to text, for stop strings), what ends a completion is
        checked. `takes_adapters`: the engine was built to be given adapters.
        """
        self.spec = spec
        self.stop_tokens = stop_tokens
        self._ends = Ends(stop_tokens.ids, decode) if stop_tokens is not None and decode is not None else None
        self.read_sampling = read_sampling
        self.group = group
        self.dtype = dtype
        self.version = 0
        self._world = world
        self._sleep_level = sleep_level
        self.takes_images = Capability.MULTIMODAL in spec.capabilities_on(world.device.type)
        self.gives_checksums = Capability.WEIGHT_CHECKSUMS in spec.capabilities_on(world.device.type)
        self._verify_checksums = verify_checksums and self.gives_checksums
        self.takes_adapters = takes_adapters
        self.unverified: list[str] = []
        self._unverified_base: list[str] = []
        self.sent_fingerprint: int | None = None
        """Of the weights of the last sync; None where there is no engine, or syncs are not verified."""
        self._seed = seed
        self._calls = 0
        self._tokenize = tokenize
        self._generate_timeout_s = generate_timeout_s
        self._make_room = make_room
        self._status = EngineStatus.AWAKE
        here = spec.topology == "spmd" or group.is_first
        self.engine: InferenceEngine | None = self._together("starting the engine", lambda: make_engine() if here else None)

    @property
    def status(self) -> EngineStatus:
        """Where the engine's memory is. Not collective."""
        return self._status

    def gather_and_generate(
        self,
        sampling: SamplingParams,
        *,
        prompt_token_ids: Sequence[Sequence[int]] | None,
        prompts: Sequence[str] | None,
        images: Sequence[Any] | None,
        images_num: Sequence[int] | None,
        sleep_engine: bool,
        logprobs: Sequence[bool] | bool,
        videos: Sequence[Any] | None = None,
        videos_num: Sequence[int] | None = None,
        on_finished: Callable[[int, RequestOutput], None] | None = None,
    ) -> list[RequestOutput]:
        """See `StrategyBase.gather_and_generate`."""
        self._usable()
        source = PromptSource(
            prompt_token_ids=prompt_token_ids, prompts=prompts, images=images, images_num=images_num, videos=videos, videos_num=videos_num,
            logprobs=logprobs,
        )  # fmt: skip
        mine, numbers = self._together_counting("collecting prompts", lambda: self._requests(source, sampling))
        first = sum(numbers[: self._world.rank])
        call_seed = self._seed + self._calls if sampling.seed is None else sampling.seed
        self._calls += 1
        mine = [replace(r, id=first + i, seed=derive_seed(call_seed, first + i)) for i, r in enumerate(mine)]
        slices = self._gather(mine)
        self.wake_up()
        finished = unread if on_finished is None else _of_range(on_finished, first=first, count=len(mine))
        outputs = self._together("generating", lambda: self._generate(slices, sampling, finished))
        answers = self._scatter(outputs, mine)
        if sleep_engine:
            self.maybe_sleep()
        return answers

    def converse(
        self, sampling: SamplingParams, *, prompt_token_ids: Sequence[Sequence[int]], logprobs: Sequence[bool] | bool, talks: Talks
    ) -> int:
        """See `StrategyBase.converse`. Of the world, two messages are exchanged, however many turns there are."""
        self._usable()
        source = PromptSource(prompt_token_ids=prompt_token_ids, prompts=None, images=None, images_num=None, logprobs=logprobs)
        mine, numbers = self._together_counting("collecting prompts", lambda: self._requests(source, sampling))
        first = sum(numbers[: self._world.rank])
        call_seed = self._seed + self._calls if sampling.seed is None else sampling.seed
        self._calls += 1
        mine = [replace(r, id=first + i, seed=derive_seed(call_seed, first + i)) for i, r in enumerate(mine)]
        self.wake_up()
        driver = Driver(
            talks,
            engine=self.engine,
            spmd=self.spec.topology == "spmd",
            joins=Capability.STEPPING in self.spec.capabilities_on(self._world.device.type),
            group=self.group,
            sampling=sampling,
            seed=call_seed,
            first=first,
            total=sum(numbers),
            poll=self._polled,
            check=self._check_completion,
        )
        with self._shown(None):
            self._together("generating", lambda: driver.run(mine))
        return first

    @property
    def calls(self) -> int:
        """Calls of `gather_and_generate` and `converse` so far, from which seeds follow. Not collective."""
        return self._calls

    def restore(self, *, version: int, calls: int) -> None:
        """Goes on counting where another controller stopped. The engine's own version follows with the next update. Not collective."""
        self.version, self._calls = version, calls

    def reset_cache(self) -> None:
        """The engine forgets what it computed before."""
        self._usable()
        self._together("resetting the engine's caches", lambda: self.engine.reset_cache() if self.engine else None)

    def wake_up(self) -> None:
        """To AWAKE. Idempotent."""
        self._usable()
        self._wake(ALL_TAGS)

    def maybe_sleep(self) -> None:
        """To ASLEEP, where sleep is enabled and the engine can. Idempotent."""
        self._usable()
        level = self._sleep_level
        if level is None or self._status is EngineStatus.ASLEEP:
            return
        self._world.memory.note()
        self._together("putting the engine to sleep", lambda: self.engine.sleep(level) if self.engine else None)
        self._world.memory.note()
        self._status = EngineStatus.ASLEEP

    def shutdown(self) -> None:
        """Ends this rank's engine. Idempotent. Not collective."""
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None
        self._status = EngineStatus.UNUSABLE

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _requests(self, source: PromptSource, sampling: SamplingParams) -> list[Request]:
        requests = collect_requests(source, tokenize=self._tokenize)
        videos = [isinstance(one, Video) for request in requests for one in request.images]
        asked = needed_capabilities(sampling, logprobs=any(r.logprobs for r in requests), images=not all(videos), videos=any(videos))
        for what, capability in asked:
            if capability not in self.spec.capabilities_on(self._world.device.type):
                raise CapabilityError(
                    f"{what} needs the capability {str(capability)!r}, which engine {self.spec.name!r} does not have here"
                    + (LOGPROBS_REMEDY if capability is Capability.LOGPROBS else "")
                )
        return with_images_read(requests)

    def _gather(self, mine: list[Request]) -> list[list[Request]]:
        """The requests of each rank of the group, where the engine runs; nothing elsewhere."""
        if self.group.size == 1:
            return [mine]
        flats = gather_to_first(pack_requests(mine), group=self.group.group)
        if self.spec.topology == "spmd":
            flats = broadcast_object(flats, source=0, group=self.group.group)
        slices = [unpack_requests(flat) for flat in flats]
        if not self.takes_images:
            return slices
        return with_images_of_others(slices, mine, group=self.group.group, everywhere=self.spec.topology == "spmd")

    def _generate(self, slices: list[list[Request]], sampling: SamplingParams, finished: Finished) -> list[list[RequestOutput]]:
        if self.engine is None:
            return []
        requests = [request for part in slices for request in part]
        self.engine.finished = finished
        try:
            with self._shown(len(requests) * sampling.n):
                outputs = self._in_time(requests, lambda engine: engine.generate(requests, sampling)) if requests else []
        finally:
            self.engine.finished = unread
        check_outputs(requests, outputs, sampling, engine=self.spec.name, version=self.version, ends=self._ends)
        stream = iter(outputs)
        return [[next(stream) for _ in part] for part in slices]

    def _polled(self, requests: Sequence[Request]) -> list[Ended]:
        return self._in_time(requests, lambda engine: engine.poll())

    def _check_completion(self, request: Request, sampling: SamplingParams, completion: Completion) -> None:
        check_completion(completion, request, sampling, engine=self.spec.name, version=self.version, ends=self._ends)

    def _in_time(self, requests: Sequence[Request], work: Callable[[InferenceEngine], T]) -> T:
        """What the engine answers. This process ends where that takes longer than `generate_timeout_s`."""
        assert self.engine is not None
        limit, rank = self._generate_timeout_s, self._world.rank
        held = f"{len(requests)} prompts outstanding (requests {requests[0].id} to {requests[-1].id})"
        late = EngineError(
            f"engine {self.spec.name!r} on rank {rank} did not return from generate within {limit:g} s (generate_timeout_s), {held}; "
            "raise it if they need longer, 0 = no limit"
        )
        with ends_after(limit, error=late, where="generate", rank=rank):
            return work(self.engine)

    @contextmanager
    def _shown(self, num_completions: int | None) -> Iterator[None]:
        """While the block runs, the engine's progress is on rank 0's terminal; None: nobody knows how many completions there will be."""
        if self.engine is None or not on_terminal(self._world.rank):
            yield
            return
        with progress_line(num_completions) as self.engine.report:
            try:
                yield
            finally:
                self.engine.report = unwatched

    def _scatter(self, outputs: list[list[RequestOutput]], mine: list[Request]) -> list[RequestOutput]:
        if self.group.size == 1:
            return outputs[0]
        packed = [pack_outputs(part) for part in outputs]
        if self.spec.topology == "spmd":
            self._check_in_step([p[0] for p in packed])
        tokens = scatter_from_first([p[0] for p in packed], dtype=torch.int32, group=self.group.group)
        logprobs = scatter_from_first([p[1] for p in packed], dtype=torch.float32, group=self.group.group)
        return unpack_outputs(tokens, logprobs, mine)

    def _check_in_step(self, tokens: list[torch.Tensor]) -> None:
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tokens)).hexdigest()
        digests = gather_objects(digest, group=self.group.group)
        different = [self.group.ranks[i] for i, d in enumerate(digests) if d != digests[0]]
        error = (
            EngineError(f"ranks {different} of the engine group {self.group.ranks} sampled other tokens than its first rank")
            if different
            else None
        )
        agree(error, group=self._world.group, doing="generating")

    def _wake(self, tags: tuple[WakeTag, ...]) -> None:
        target = EngineStatus.AWAKE if "kv_cache" in tags else EngineStatus.WEIGHTS_ONLY
        if self._status is EngineStatus.AWAKE or self._status is target:
            return
        if self.spec.topology == "single_leader" and self.group.size > 1:
            # The leader's engine is on the GPUs of ranks that have none: they make room before it wakes.
            self._together("giving torch's cache back", lambda: release_cached(self._world.device))
        self._together("waking the engine", lambda: wake(self.engine, tags, world=self._world, make_room=self._make_room))
        self._world.memory.note()
        self._status = target

    def _usable(self) -> None:
        if self._status is EngineStatus.UNUSABLE:
            raise EngineStateError("the engine is unusable: it was shut down or failed while its weights changed; start a new one")

    def _together(self, doing: str, work: Callable[[], T]) -> T:
        result, error = _attempt(work)
        self._agree(error, doing)
        return result  # type: ignore[return-value]  # without an error, work() returned a T

    def _together_counting(self, doing: str, work: Callable[[], list[T]]) -> tuple[list[T], list[int]]:
        """As `_together`; and how many each rank got, which travels along."""
        result, error = _attempt(work)
        numbers = self._agree(error, doing, number=len(result or ()))
        return result or [], numbers

    def _agree(self, error: Exception | None, doing: str, *, number: int = 0) -> list[int]:
        """In one message of each rank: whether its engine is unusable, its error, and a number; returns the numbers."""
        told = gather_objects((self._engine_unusable(), in_words(error), number), group=self._world.group)
        if any(unusable for unusable, _, _ in told):
            self._status = EngineStatus.UNUSABLE
        raise_together(error, [words for _, words, _ in told], doing=doing)
        return [count for _, _, count in told]

    def _engine_unusable(self) -> bool:
        engine = getattr(self, "engine", None)
        return engine is not None and engine.status is EngineStatus.UNUSABLE


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What it returns, or what it raises, to be raised on all ranks together."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def _of_range(on_finished: Callable[[int, RequestOutput], None], *, first: int, count: int) -> Finished:
    """Passes on this rank's outputs alone, with the position of their prompt."""

    def finished(output: RequestOutput, /) -> None:
        if first <= output.id < first + count:
            on_finished(output.id - first, output)

    return finished
