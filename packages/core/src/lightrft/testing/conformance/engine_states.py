"""Is an engine in the state that it says, in every order of calls, and is what it cannot do in that state refused?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightrft.engine.base import ALL_TAGS
from lightrft.errors import LightRFTError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit, Record, tokens
from lightrft.testing.conformance.promise import promise
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of, weights_of
from lightrft.types import EngineStatus, SamplingParams


class States(EngineKit, kit=True):
    """Asleep, half awake, awake, shut down."""

    @promise("sleep")
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
        for _ in range(2):
            engine.sleep(level)
            self._is(bench, EngineStatus.ASLEEP, f"sleep({level})")
        self._state_error(bench, "generate", lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY), "asleep")
        self._state_error(
            bench, "update_weights", lambda: engine.update_weights(weights_of(bench.models[1]), version=bench.version + 1), "asleep"
        )
        self._is(bench, EngineStatus.ASLEEP, "calls that were refused while asleep")
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
        found = tokens(engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY))
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert found == expected, (
            f"after sleep({level}) and wake_up the engine does not have the weights that it had: it answers {found[0]}"
        )

    @promise("update_weights", needs=Capability.SLEEP_1)
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
        found = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False), again))
        assert found == [[bench.greedy(p)] for p in bench.prompts], "a sync while the cache was away was lost when it came back"

    @promise("shutdown")
    def test_after_shutdown_every_call_is_refused(self, bench: EngineBench) -> None:
        """UNUSABLE, twice over without harm; every other call is an EngineStateError"""
        engine = bench.engine
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

    def _after_level_2(self, bench: EngineBench) -> None:
        engine = bench.engine
        engine.wake_up(ALL_TAGS)
        self._state_error(
            bench,
            "generate",
            lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY),
            "without weights (level 2 dropped them)",
        )
        bench.sync(bench.models[1])
