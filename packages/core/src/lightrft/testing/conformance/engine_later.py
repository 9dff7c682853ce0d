"""Requirements on later tokens: those after the first are drawn as the first is, those far on in a completion as those at its start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR, num_kept
from lightrft.testing.conformance.engine_kit import EngineKit
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of
from lightrft.types import SamplingParams

FAR = 300
"""Tokens of a completion: more than a block of any cache, and than any buffer of noise or log-probs is likely to hold."""

ROUNDING = 1e-5
"""Of an engine's probabilities: at the border of what a filter keeps, either is right."""


class Later(EngineKit, kit=True):
    """What comes after the first token."""

    @requirement("generate")
    def test_a_long_completion_is_the_models_to_its_end(self, bench: EngineBench) -> None:
        """300 tokens: so many of them, greedy ones and log-probs the model's own, no noise that repeats itself or is another sample's"""
        bench.sync(bench.models[1])
        prompt = bench.talkative()
        [output] = bench.engine.generate(requests_of([prompt], logprobs=False), replace(GREEDY, max_new_tokens=FAR))
        found, expected = list(output.completions[0].token_ids), bench.judge.greedy(bench.model, prompt, max_new_tokens=FAR)
        other = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected)))
        assert found == expected, (
            f"of {len(expected)} greedy tokens {len(found)} came, and from token {other + 1} on they are not the model's"
        )
        sampling = SamplingParams(n=2, max_new_tokens=FAR, ignore_eos=True)
        [output] = bench.engine.generate(requests_of([prompt], logprobs=bench.can(Capability.LOGPROBS)), sampling)
        numbers = [len(c.token_ids) for c in output.completions]
        assert numbers == [FAR] * 2, f"with max_new_tokens={FAR} and ignore_eos completions have {numbers} tokens"
        if bench.can(Capability.LOGPROBS):
            bench.judge_group(output, sampling, bound=FP32_ERROR, where=f"over {FAR} tokens")
        drawn = torch.tensor([list(c.token_ids) for c in output.completions])
        shared = float((drawn[0, FAR // 2 :] == drawn[1, FAR // 2 :]).double().mean())
        assert shared < 0.5, (
            f"{shared:.0%} of the later tokens are those of the other sample of a flat model: two samples share their noise"
        )
        for lag in range(1, FAR // 2):
            same = float((drawn[:, lag:] == drawn[:, :-lag]).double().mean())
            assert same < 0.5, f"{same:.0%} of the tokens of a flat model are those {lag} before them: the noise repeats itself"

    @requirement("generate")
    def test_temperature_and_filters_hold_for_every_token(self, bench: EngineBench) -> None:
        """Tokens 2 to 4, of three prompts at once, follow the tempered distribution, and are among those that `top_k` and `top_p` keep"""
        bench.sync(bench.sharpened())
        for heat in (0.5, 1.5):
            far = _surprise(bench, SamplingParams(temperature=heat, n=32, max_new_tokens=4, ignore_eos=True))
            assert far <= 5, f"tokens 2 to 4 are {far:.0f} standard deviations from temperature {heat}: is it the first one's alone?"
        for narrowed in (SamplingParams(top_k=3), SamplingParams(top_p=0.5)):
            name = "top_k=3" if narrowed.top_k else "top_p=0.5"
            for before, token, fractions in _later_tokens(bench, replace(narrowed, n=32, max_new_tokens=4, ignore_eos=True)):
                number = num_kept(fractions, replace(narrowed, top_p=min(1.0, narrowed.top_p + ROUNDING)))
                more_likely = int((fractions > fractions[token] + ROUNDING).sum())
                assert more_likely < number, (
                    f"{name} keeps {number} tokens; token {len(before) + 1} of a completion is one than which {more_likely} are likelier: "
                    "is the filter that of the first token, or request, alone?"
                )


def _surprise(bench: EngineBench, sampling: SamplingParams) -> float:
    """How many standard deviations the log-probability of the later tokens is from what the tempered distribution expects."""
    found, expected, variance = 0.0, 0.0, 0.0
    for _, token, fractions in _later_tokens(bench, sampling):
        logs = fractions.clamp(min=1e-300).log()
        mean = float((fractions * logs).sum())
        found, expected = found + float(logs[token]), expected + mean
        variance += float((fractions * (logs - mean).square()).sum())
    return abs(found - expected) / (math.sqrt(variance) + 1e-6)


def _later_tokens(bench: EngineBench, sampling: SamplingParams) -> Iterator[tuple[tuple[int, ...], int, torch.Tensor]]:
    """Of each token but the first of each completion: the tokens before it, itself, and the tempered distribution that it is of."""

    @cache
    def distribution(context: tuple[int, ...]) -> torch.Tensor:
        return bench.judge.distribution(bench.model, context, temperature=sampling.temperature)

    for output in bench.engine.generate(requests_of([bench.short, bench.filling(9), [7, 3, 11]], logprobs=False), sampling):
        for completion in output.completions:
            tokens = tuple(completion.token_ids)
            for at in range(1, len(tokens)):
                yield tokens[:at], tokens[at], distribution((*output.prompt_token_ids, *tokens[:at]))
