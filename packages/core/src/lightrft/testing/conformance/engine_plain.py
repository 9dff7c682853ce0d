"""The plainest question to an engine: whether it starts and answers at all. Where it does not, nothing else is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightrft.engine.base import ALL_TAGS
from lightrft.testing.conformance.engine_kit import EngineKit
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, OF_THE_FOLDER, EngineBench, requests_of
from lightrft.testing.limits import sentence, within
from lightrft.types import EngineStatus, RequestOutput, SamplingParams


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

    @requirement("generate")
    def test_nothing_of_the_folders_generation_config_is_used(self, bench: EngineBench) -> None:
        """What is drawn, and how, is what the request says: sampling that generation_config.json asks for has no effect"""
        asked = ", ".join(f"{name} {value}" for name, value in OF_THE_FOLDER.items())
        [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), SamplingParams(n=64, max_new_tokens=1))
        different = len({c.token_ids[0] for c in output.completions})
        assert different > 2 * OF_THE_FOLDER["top_k"], (
            f"64 draws of a flat model are {different} different tokens: is generation_config.json of the folder used? It has {asked}"
        )
        [output] = bench.engine.generate(requests_of([bench.long], logprobs=False), GREEDY)
        found, expected = list(output.completions[0].token_ids), bench.greedy(bench.long)
        assert found == expected, (
            f"greedy tokens are {found}, the model's are {expected}: is generation_config.json of the folder used? It has {asked}"
        )
