"""Draws are new each time: other seeds draw otherwise, whether an engine declares `seed` or not."""

from __future__ import annotations

from itertools import pairwise

from lightrft.engine.base import ALL_TAGS
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import EngineBench, requests_of
from lightrft.types import SamplingParams


class Seeds(EngineKit, kit=True):
    """What may not repeat itself."""

    @requirement("generate")
    def test_other_seeds_draw_otherwise(self, bench: EngineBench) -> None:
        """No completion comes twice: not for the next request of a prompt, not in the next call, not after a sync or a sleep"""
        bench.sync(bench.models[1])
        sampling = SamplingParams(n=2, max_new_tokens=8, ignore_eos=True)  # of a flat model no two completions are the same by chance
        drawn: dict[tuple[int, ...], str] = {}
        for call, when in enumerate(
            ("one call", "the next call", "a call after a sync", "a call after a sleep", "a call after another sleep")
        ):
            if when == "a call after a sync":
                bench.sync(bench.models[1])
            if "sleep" in when and bench.can(Capability.SLEEP_1):
                bench.engine.sleep(1)
                bench.engine.wake_up(ALL_TAGS)
            requests = requests_of([bench.short] * 6, logprobs=False, first_seed=100 + 1_000_000 * call)
            for request, group in zip(requests, tokens(bench.engine.generate(requests, sampling)), strict=True):
                for sample, completion in enumerate(group):
                    here = f"{when}, request {request.id}, sample {sample}"
                    before = drawn.setdefault(tuple(completion), here)
                    assert before == here, (
                        f"{here} drew what {before} had drawn, although their seeds differ: the seed, or the noise, is the same each time"
                    )

    @requirement("generate")
    def test_each_token_is_a_draw_of_its_own(self, bench: EngineBench) -> None:
        """Neighbouring tokens of a flat model are rarely the same: one number drawn for all positions would repeat a token"""
        bench.sync(bench.models[1])
        [output] = bench.engine.generate(
            requests_of([bench.short], logprobs=False), SamplingParams(n=32, max_new_tokens=8, ignore_eos=True)
        )
        pairs = [pair for c in output.completions for pair in pairwise(c.token_ids)]
        same = sum(a == b for a, b in pairs) / len(pairs)
        assert same < 0.5, f"{same:.0%} of the tokens are those before them: one draw serves all positions of a completion"
