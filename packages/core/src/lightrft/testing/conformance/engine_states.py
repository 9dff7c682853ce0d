"""Requirements of an engine's states, in every order of calls, and of what is refused there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.engine.base import ALL_TAGS
from lightrft.errors import LightRFTError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit, Record, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of, weights_of
from lightrft.testing.limits import left_over
from lightrft.types import EngineStatus, SamplingParams

FRACTION, SLACK = 0.2, 0.05
"""Of a GPU's memory: what an engine is given, and what its libraries and graphs may take beside it."""


class States(EngineKit, kit=True):
    """Asleep, half awake, awake, shut down."""

    @requirement("capabilities", needs=Capability.MEM_UTIL)
    def test_it_keeps_to_its_fraction_of_the_devices_memory(self, bench: EngineBench, record_property: Record) -> None:
        """`engine_mem_util`: outside of (0, 1] refused; within, the engine comes up, and on a GPU takes no more than that fraction"""
        for fraction in (0.0, -0.5, 1.01):
            try:
                make_config({"engine_type": bench.spec.name, "engine_mem_util": fraction})
            except LightRFTError as error:
                assert "engine_mem_util" in str(error), f"engine_mem_util={fraction} is refused without the setting's name: {str(error)!r}"
                continue
            raise AssertionError(f"engine_mem_util={fraction} was accepted; it is a fraction of the device's memory")
        if not self._declared(bench, Capability.MEM_UTIL, record_property):
            return
        cuda = bench.device.type == "cuda"
        bench.close()
        before = torch.cuda.mem_get_info()[0] if cuda else 0
        try:
            bench.restart(mem_util=FRACTION)
        except Exception as error:
            raise AssertionError(f"mem_util={FRACTION} was not accepted, although 'mem_util' is declared: {error}") from error
        found = tokens(bench.engine.generate(requests_of([bench.short], logprobs=False), GREEDY))
        assert found == [[bench.greedy(bench.short)]], f"with mem_util={FRACTION} the engine answers {found}"
        if cuda:
            free, total = torch.cuda.mem_get_info()
            taken = (before - free) / total
            assert taken < FRACTION + SLACK, f"with mem_util={FRACTION} the engine took {taken:.2f} of the device's memory"

    @requirement("sleep")
    @pytest.mark.parametrize("level", [1, 2])
    def test_asleep_it_refuses_and_awake_it_is_what_it_was(self, bench: EngineBench, record_property: Record, level: int) -> None:
        """Asleep, `generate` and `update_weights` are refused; awake again it has its weights (level 2: of the next sync)"""
        engine, capability = bench.engine, Capability.SLEEP_1 if level == 1 else Capability.SLEEP_2
        if not bench.can(capability):
            try:
                engine.sleep(level)
            except LightRFTError:
                self._is(bench, EngineStatus.AWAKE, "a sleep that was refused")
                record_property("refused", str(capability))
                return
            bench.close()
            raise AssertionError(f"sleep({level}) was silently accepted by an engine that does not declare {str(capability)!r}")
        bench.sync(bench.models[1])  # not those of the folder, which an engine could read again
        for _ in range(2):
            engine.sleep(level)
            self._is(bench, EngineStatus.ASLEEP, f"sleep({level})")
        self._state_error(bench, "generate", lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY), "asleep")
        self._state_error(
            bench, "update_weights", lambda: engine.update_weights(weights_of(bench.models[1]), version=bench.version + 1), "asleep"
        )
        self._is(bench, EngineStatus.ASLEEP, "calls that were refused while asleep")
        engine.wake_up(ALL_TAGS[1:])
        self._is(bench, EngineStatus.ASLEEP, "wake_up(kv_cache) without the weights")
        engine.wake_up(ALL_TAGS[:1])
        self._is(bench, EngineStatus.WEIGHTS_ONLY, "wake_up(weights)")
        self._state_error(
            bench, "generate", lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY), "without its cache"
        )
        if level == 2:
            self._after_level_2(bench)
        for _ in range(2):
            engine.wake_up(ALL_TAGS)
            self._is(bench, EngineStatus.AWAKE, "wake_up(weights, kv_cache)")
        outputs = engine.generate(requests_of(bench.prompts, logprobs=bench.can(Capability.LOGPROBS)), GREEDY)
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert tokens(outputs) == expected, (
            f"after sleep({level}) and wake_up the engine does not have the weights that it had: it answers {tokens(outputs)[0]}"
        )
        versions = {c.weight_version for o in outputs for c in o.completions}
        assert versions == {bench.version}, f"after sleep({level}) completions carry the version {sorted(versions)}, not {bench.version}"
        for output in outputs if bench.can(Capability.LOGPROBS) else ():
            bench.judge_group(output, GREEDY, bound=FP32_ERROR, where=f"after sleep({level})")

    @requirement("update_weights", needs=Capability.SLEEP_1)
    def test_weights_may_change_before_the_cache_is_back(self, bench: EngineBench, record_property: Record) -> None:
        """With its weights awake alone it takes a sync; then the cache comes back, and the new weights answer"""
        level = next((n for n, c in ((1, Capability.SLEEP_1), (2, Capability.SLEEP_2)) if bench.can(c)), None)
        if level is None:
            record_property("refused", str(Capability.SLEEP_1))
            return
        bench.engine.sleep(level)
        bench.engine.wake_up(ALL_TAGS[:1])
        bench.sync(bench.models[2] if bench.model is not bench.models[2] else bench.models[1])
        self._is(bench, EngineStatus.WEIGHTS_ONLY, "a sync with the weights awake alone")
        bench.engine.wake_up(ALL_TAGS)
        again = SamplingParams(temperature=0.0, max_new_tokens=8)
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), again)
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert tokens(outputs) == expected, "a sync while the cache was away was lost when it came back"
        versions = {c.weight_version for o in outputs for c in o.completions}
        assert versions == {bench.version}, (
            f"after a sync with the weights awake alone the version is {sorted(versions)}, not {bench.version}"
        )

    @requirement("shutdown")
    def test_after_shutdown_every_call_is_refused(self, bench: EngineBench) -> None:
        """UNUSABLE, twice over without harm; other calls are EngineStateErrors; no process is left, and the next engine begins anew"""
        engine = bench.engine
        bench.sync(bench.models[1], version=bench.version + 7)
        held = bench.version
        engine.shutdown()
        engine.shutdown()
        self._is(bench, EngineStatus.UNUSABLE, "shutdown")
        calls: dict[str, Callable[[], object]] = {
            "generate": lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY),
            "update_weights": lambda: engine.update_weights([], version=1),
            "reset_cache": engine.reset_cache,
            "sleep": lambda: engine.sleep(1),
            "wake_up": lambda: engine.wake_up(ALL_TAGS),
        }
        for name, call in calls.items():
            if name != "sleep" or bench.can(Capability.SLEEP_1):
                self._state_error(bench, name, call, "shut down")
        left = left_over(bench.processes, within_s=min(30.0, self.timeout_s / 4))
        assert not left, f"after shutdown {len(left)} processes of the engine still run: {', '.join(sorted(left.values()))[:200]}"
        if bench.starts == 1:  # else tests after the second start saw it, and a start may take a minute
            self._begins_anew(bench, held)

    def _begins_anew(self, bench: EngineBench, version: int) -> None:
        """Built after another was shut down, an engine has the folder's weights and version 0, and is awake."""
        bench.restart()
        self._is(bench, EngineStatus.AWAKE, "the start of another engine")
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY)
        versions = {c.weight_version for o in outputs for c in o.completions}
        shared = tokens(outputs) != [[bench.greedy(p)] for p in bench.prompts] or versions != {0}
        if shared:
            bench.close()
        assert not shared, (
            f"an engine made after one that held version {version} was shut down carries version {sorted(versions)} and has not the "
            "folder's weights: two engines share state"
        )

    def _after_level_2(self, bench: EngineBench) -> None:
        engine = bench.engine
        engine.wake_up(ALL_TAGS)
        self._state_error(
            bench,
            "generate",
            lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY),
            "without weights (level 2 dropped them)",
        )
        bench.sync(bench.models[2])
