"""The plainest question to an engine: whether it starts and answers at all. Where it does not, nothing else is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightrft.engine.base import ALL_TAGS
from lightrft.testing.conformance.engine_kit import EngineKit
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of
from lightrft.testing.limits import sentence, within
from lightrft.types import EngineStatus, RequestOutput


class Starts(EngineKit, kit=True):
    """It is there."""

    @requirement("generate")
    def test_it_starts_awake_and_answers(self, shared_bench: EngineBench, request: pytest.FixtureRequest) -> None:
        """Built awake with the folder's weights, it answers two prompts, greedy and drawn, with RequestOutputs"""
        bench = shared_bench
        bench.asking = request.node.name
        try:
            with within(self.timeout_s, f"engine {self.plugin_name()!r}", then=bench.abandon):
                bench.restart()
                self._is(bench, EngineStatus.AWAKE, "the start")
                bench.engine.wake_up(ALL_TAGS)
                for sampling in (GREEDY, replace(GREEDY, temperature=1.0, n=2)):
                    found = bench.engine.generate(requests_of([bench.short, bench.long], logprobs=False), sampling)
                    strange = sorted({type(o).__name__ for o in found if not isinstance(o, RequestOutput)})
                    assert not strange, f"generate returned {', '.join(strange)} in the place of RequestOutput"
                    assert all(o.completions and all(c.token_ids for c in o.completions) for o in found), "a request has no completion"
        except AssertionError:
            bench.blocked = request.node.name
            raise
        except Exception as error:
            bench.blocked = request.node.name
            raise AssertionError(sentence(error)) from error
