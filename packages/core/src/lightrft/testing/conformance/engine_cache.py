"""Nothing that was computed with older weights is used again: prefix caches of every block size, and of prompts that share a prefix."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from lightrft.engine.base import ALL_TAGS
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of


class Caches(EngineKit, kit=True):
    """What outlives a call."""

    @requirement("cache_block")
    def test_a_block_of_its_cache_is_a_number_of_tokens(self, bench: EngineBench) -> None:
        """0 without a prefix cache; else so few tokens that two blocks fit into a context"""
        assert bench.cache_lengths()

    @requirement("reset_cache")
    def test_nothing_computed_with_older_weights_is_used_again(self, bench: EngineBench) -> None:
        """After a sync, prompts of 200 and 2,000 tokens, of two declared blocks, and those that begin so, get answers of the new weights"""
        long = [bench.filling(length) for length in bench.cache_lengths()]
        related = [[*prompt[:-3], 5, 4, 3] for prompt in long]  # never asked before a sync; their beginnings were
        for model in (bench.models[1], bench.models[2]):
            bench.sync(model)
            self._answers_are_new(bench, [*long, *long, *related], "a sync")
            self._answers_are_new(bench, long, "a sync and another call")
            self._samples_are_new(bench, long)

    @requirement("sleep", needs=Capability.SLEEP_1)
    def test_no_cache_outlives_a_sync_that_comes_while_it_sleeps(self, bench: EngineBench) -> None:
        """The same where the sync comes with the weights awake alone, as in a run that sleeps between rollouts"""
        levels = [n for n, c in ((1, Capability.SLEEP_1), (2, Capability.SLEEP_2)) if bench.can(c)]
        long = [bench.filling(length) for length in bench.cache_lengths()]
        for level, model in product(levels, (bench.models[1], bench.models[2])):
            tokens(bench.engine.generate(requests_of(long, logprobs=False), GREEDY))
            bench.engine.sleep(level)
            bench.engine.wake_up(ALL_TAGS[:1])
            bench.sync(model)
            bench.engine.wake_up(ALL_TAGS)
            self._answers_are_new(bench, long, f"sleep({level}) and a sync")

    def _samples_are_new(self, bench: EngineBench, prompts: list[list[int]]) -> None:
        """The same of several samples, which an engine may compute from one prefix; and their log-probs, where it has such."""
        found = tokens(bench.engine.generate(requests_of(prompts, logprobs=False), replace(GREEDY, n=2)))
        for prompt, answers in zip(prompts, found, strict=True):
            expected = [bench.greedy(prompt)] * 2
            assert answers == expected, (
                f"two samples of a prompt of {len(prompt)} tokens that was asked before are {answers} after a sync (version "
                f"{bench.version}), not {expected}: stale cache"
            )
        if bench.can(Capability.LOGPROBS):
            drawn = replace(GREEDY, n=2, temperature=1.0)
            for output in bench.engine.generate(requests_of(prompts), drawn):
                bench.judge_group(output, drawn, bound=FP32_ERROR, where=f"after a prompt of {len(output.prompt_token_ids)} tokens")

    def _answers_are_new(self, bench: EngineBench, prompts: list[list[int]], when: str) -> None:
        found = tokens(bench.engine.generate(requests_of(prompts, logprobs=False), GREEDY))
        for prompt, [answer] in zip(prompts, found, strict=True):
            expected = bench.greedy(prompt)
            assert answer == expected, (
                f"a prompt of {len(prompt)} tokens that was asked before, or began so, answers {answer} after {when} "
                f"(version {bench.version}), not {expected}: stale cache"
            )
