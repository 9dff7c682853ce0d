"""Faults of an engine's states, and of what it declares. One for each class here."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from kit_mutants.mutant import mutant
from lightrft.engine.base import EngineSetup, WakeTag
from lightrft.engine.hf import HFEngine
from lightrft.plugins.specs import Capability
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import EngineStatus, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import WeightBucket

Outputs = list[RequestOutput]

LOGPROBS = "logprobs_are_untempered_unfiltered_and_only_where_asked"
SLEEP = "asleep_it_refuses_and_awake_it_is_what_it_was"
BAD_REQUEST = "a_bad_request_is_named_and_harms_nobody"
GROUPS = "two_ranks_share_one_engine"
SHUTDOWN = "after_shutdown_every_call_is_refused"
FILTERS = "filters_narrow_the_draw"


@mutant("fake engine", "sleep loses the weights", test=SLEEP, words="does not have the weights that it had")
class SleepLosesWeights(FakeEngine):
    def sleep(self, level: int) -> None:
        super().sleep(level)
        self._weights = 0 if level == 1 else None


@mutant("hf", "level 2 leaves buffers undefined", test=SLEEP, words="after sleep(2) and wake_up")
class BuffersLost(HFEngine):
    def _bring_weights(self) -> None:
        if self._weights_held:
            super()._bring_weights()
        else:
            self._model = self._model.to_empty(device=self.setup.device)
            for buffer in self._model.buffers():
                buffer.zero_()


@mutant("fake engine", "generate while asleep works in silence", test=SLEEP, words="generate while the engine is asleep was accepted")
class GeneratesAsleep(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        before, self._status = self._status, EngineStatus.AWAKE if self._status is EngineStatus.ASLEEP else self._status
        outputs = super().generate(requests, sampling)
        self._status = before
        return outputs


@mutant(
    "fake engine", "an update while asleep works in silence", test=SLEEP, words="update_weights while the engine is asleep was accepted"
)
class UpdatesAsleep(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status is not EngineStatus.ASLEEP:
            super().update_weights(buckets, version=version)


@mutant("fake engine", "a second sleep wakes", test=SLEEP, words="after sleep(1) the status is 'awake'")
class DoubleSleep(FakeEngine):
    def sleep(self, level: int) -> None:
        asleep = self._status is EngineStatus.ASLEEP
        super().sleep(level)
        self._status = EngineStatus.AWAKE if asleep else self._status


@mutant("fake engine", "wake_up of the weights says that all is awake", test=SLEEP, words="after wake_up(weights) the status is 'awake'")
class WakesAll(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up(("weights", "kv_cache") if "weights" in tags else tags)


@mutant("fake engine", "a cache without weights is awake", test=SLEEP, words="after wake_up(kv_cache) without the weights")
class CacheAloneWakes(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up(tags)
        if list(tags) == ["kv_cache"] and self._status is EngineStatus.ASLEEP:
            self._status = EngineStatus.AWAKE


@mutant("fake engine", "wake_up loses the KV cache", test=SLEEP, words="the status is 'weights_only', expected 'awake'")
class WakeLosesTheCache(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up([tag for tag in tags if tag == "weights"])


@mutant("fake engine", "weights that level 2 dropped are made up", test=SLEEP, words="without weights (level 2 dropped them) was accepted")
class Garbage(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up(tags)
        self._weights = self._weights or 12345


@mutant("fake engine", "level 2 is not declared and silently accepted", test=SLEEP, words="silently accepted", hides=[Capability.SLEEP_2])
class UndeclaredSleep(FakeEngine):
    pass


@mutant("fake engine", "a sync with weights alone awake is lost", test="weights_may_change_before_the_cache_is_back", words="was lost")
class SyncLostOnWake(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        if self._status is EngineStatus.ASLEEP:
            self.__dict__["kept"] = self._weights
        super().wake_up(tags)
        if self._status is EngineStatus.AWAKE and self.__dict__.get("kept"):
            self._weights = self.__dict__.pop("kept")


@mutant("fake engine", "the status is wrong after an error", test=BAD_REQUEST, words="after a request that was refused")
class StatusAfterAnError(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        try:
            return super().generate(requests, sampling)
        except ValueError:
            self._status = EngineStatus.WEIGHTS_ONLY
            raise


@mutant("fake engine", "a refusal that does not say which request", test=BAD_REQUEST, words="without the request's id")
class NamelessRequest(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        try:
            return super().generate(requests, sampling)
        except ValueError as error:
            raise ValueError("a request is wrong") from error


@mutant("hf", "unknown tokens are clamped in silence", test=BAD_REQUEST, words="outside the vocabulary was accepted")
class TokensClamped(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        clamped = [replace(r, prompt_token_ids=[min(t, self._vocab_size - 1) for t in r.prompt_token_ids]) for r in requests]
        return super().generate(clamped, sampling)


@mutant("fake engine", "generates after shutdown", test=SHUTDOWN, words="generate while the engine is shut down was accepted")
class GeneratesAfterShutdown(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return [] if self._status is EngineStatus.UNUSABLE else super().generate(requests, sampling)


@mutant(
    "hf", "resetting caches after shutdown is an error of Python's", test=SHUTDOWN, words="reset_cache while the engine is shut down raised"
)
class CrashesAfterShutdown(HFEngine):
    def reset_cache(self) -> None:
        self._model.generation_config.cache_implementation = None


@mutant("fake engine", "wakes with the folder's weights", test=SLEEP, words="does not have the weights that it had")
class WakesWithTheFolders(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        slept = self._status is EngineStatus.ASLEEP and self._weights is not None
        super().wake_up(tags)
        if slept:
            self._weights = type(self)(self.setup)._weights


@mutant("fake engine", "sleep loses the version", test=SLEEP, words="after sleep(1) completions carry the version")
class SleepLosesTheVersion(FakeEngine):
    def sleep(self, level: int) -> None:
        super().sleep(level)
        self._version = 0


@mutant("fake engine", "two engines share their weights", test=SHUTDOWN, words="two engines share state")
class SharedWeights(FakeEngine):
    held: int | None = None

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=version)
        type(self).held = self._weights

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._weights = self.held or self._weights


@mutant("fake engine", "a process outlives its engine", test=SHUTDOWN, words="processes of the engine still run: sleep 60")
class LeavesAProcess(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self.child = subprocess.Popen(["sleep", "60"])


@mutant(
    "fake engine", "generate hangs", test="greedy_completions_of_one_prompt_are_identical",
    words="hangs: it did not come back within 20 s",
)  # fmt: skip
class GenerateHangs(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        while sampling.temperature == 0 and sampling.n == 3:
            time.sleep(0.1)
        return super().generate(requests, sampling)


@mutant(
    "fake engine", "its fraction of the memory is its own affair", test="it_keeps_to_its_fraction_of_the_devices_memory",
    words="mem_util=0.2 was not accepted", declares=[Capability.MEM_UTIL],
)  # fmt: skip
class FractionOfItsOwn(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        if setup.mem_util < 0.25:
            raise MemoryError("no room for the cache")
        super().__init__(setup)


@mutant("fake engine", "tensor parallelism declared and absent", test=GROUPS, words="although 'tensor_parallel' is declared")
class TensorParallelAbsent(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        if setup.group_size > 1:
            raise NotImplementedError("this engine is one process")
        super().__init__(setup)


@mutant("fake engine", "with several ranks a sync is lost", test=GROUPS, words="after a sync; its prompts' answers are")
class SyncLostOnRanks(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        kept = self._weights
        super().update_weights(buckets, version=version)
        self._weights = kept if self.setup.group_size > 1 else self._weights


@mutant("fake engine", "log-probs declared and absent", test=LOGPROBS, words="completions have them", declares=[Capability.LOGPROBS])
class LogprobsAbsent(FakeEngine):
    pass


@mutant("fake engine", "min_p declared and absent", test=FILTERS, words="'min_p': 0.999", declares=[Capability.MIN_P])
class MinPAbsent(FakeEngine):
    pass


@mutant(
    "fake engine", "min_new_tokens declared and absent", test="min_new_tokens_keeps_stop_tokens_away", words="min_new_tokens=4",
    declares=[Capability.MIN_NEW_TOKENS],
)  # fmt: skip
class MinNewTokensAbsent(FakeEngine):
    pass


@mutant(
    "fake engine", "stop strings declared and absent", test="a_stop_string_ends_a_completion_with_the_token_that_completes_it",
    words="with the stop string", declares=[Capability.STOP_STRINGS],
)  # fmt: skip
class StopStringsAbsent(FakeEngine):
    pass
