"""Faults of an engine that uncommon requests alone show: other numbers of samples, odd tokens, tokens far on. One for each class here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from kit_mutants.engine_draws import KEPT, LOGPROBS, ORDER, SEED, each
from kit_mutants.engine_load import ASLEEP, STALE, BlockCache
from kit_mutants.engine_states import SLEEP
from kit_mutants.mutant import mutant
from lightrft.engine import hf_generate
from lightrft.engine.filters import filter_logits
from lightrft.engine.hf import HFEngine
from lightrft.engine.stop_text import cut_at_stop
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import Completion, Request, RequestOutput, SamplingParams
from lightrft.weights.buckets import Weight, WeightBucket

Outputs = list[RequestOutput]
Draw = Callable[[Any, torch.Tensor, int], torch.Tensor]

BUCKETS = "buckets_are_read_once_and_may_be_used_again_by_the_sender"
LONG = "a_long_completion_is_the_models_to_its_end"
LATER = "temperature_and_filters_hold_for_every_token"
PROMPTS = "any_token_may_stand_in_a_prompt"


def off(outputs: Outputs, wrong: Callable[[int], bool] = lambda at: True) -> Outputs:
    """The log-prob of each token whose place is `wrong` is too low."""

    def change(c: Completion) -> Completion:
        return replace(c, logprobs=c.logprobs and [p - 0.1 * wrong(at) for at, p in enumerate(c.logprobs)])

    return each(outputs, change)


# ---- prompts and the folder --------------------------------------------------------------------------------------------------------------


class WithoutPadding(HFEngine):
    """Takes a token of a prompt for padding."""

    padding: tuple[int, ...] = ()

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        read = [replace(r, prompt_token_ids=[t for t in r.prompt_token_ids if t not in self.padding]) for r in requests]
        read = [mine if mine.prompt_token_ids else r for mine, r in zip(read, requests, strict=True)]
        outputs = super().generate(read, sampling)
        return [replace(o, prompt_token_ids=r.prompt_token_ids) for o, r in zip(outputs, requests, strict=True)]


@mutant("hf", "an end of sequence in a prompt is taken for padding", test=PROMPTS, words="the prompt [1, 5, 6, 7, 8, 9] is answered by")
class EndIsPadding(WithoutPadding):
    padding = (1,)


@mutant("hf", "token 0 in a prompt is taken for padding", test=PROMPTS, words="the prompt [0, 5, 6, 7, 8, 9] is answered by")
class ZeroIsPadding(WithoutPadding):
    padding = (0,)


@mutant(
    "hf", "top_k of generation_config.json where the request has none", test="nothing_of_the_folders_generation_config_is_used",
    words="64 draws of a flat model are 4 different tokens",
)  # fmt: skip
class TakesTheFoldersDefaults(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        given = json.loads((Path(self.setup.model_path) / "generation_config.json").read_text(encoding="utf-8"))
        return super().generate(requests, replace(sampling, top_k=sampling.top_k or given.get("top_k", 0)))


@mutant("fake engine", "equal prompts are answered once, under the first one's id", test=ORDER, words="in that order")
class EqualPromptsOnce(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs, first = super().generate(requests, sampling), dict[tuple[int, ...], RequestOutput]()
        return [first.setdefault(tuple(o.prompt_token_ids), o) if sampling.temperature == 0 else o for o in outputs]


@mutant("fake engine", "neighbouring prompts of equal length change places", test=ORDER, words="answer other prompts")
class EqualLengthsSwapped(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        for i, (a, b) in enumerate(zip(outputs, outputs[1:], strict=False)):
            if len(a.prompt_token_ids) == len(b.prompt_token_ids) and a.prompt_token_ids != b.prompt_token_ids:
                outputs[i : i + 2] = [replace(a, completions=b.completions), replace(b, completions=a.completions)]
        return outputs


@mutant("fake engine", "seed 0 is no seed", test=SEED, words="a request of seed 0 drew")
class SeedZeroIsNone(FakeEngine):
    asked = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        self.asked += 1
        return super().generate([r if r.seed else replace(r, seed=1 + 7919 * self.asked + r.id) for r in requests], sampling)


# ---- other numbers of samples, later tokens ----------------------------------------------------------------------------------------------


@mutant("hf", "log-probs are wrong where one sample is asked", test=LOGPROBS, words="n 1,")
class LogprobsOfOne(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return off(outputs) if sampling.n == 1 else outputs


@mutant("hf", "log-probs are wrong for more samples than a batch", test=LOGPROBS, words="n 17,")
class LogprobsOfMany(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return off(outputs) if sampling.n > 8 else outputs


@mutant("hf", "log-probs after min_new_tokens took the stop tokens away", test=LOGPROBS, words="min_new_tokens 4")
class LogprobsWithoutStops(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return off(super().generate(requests, sampling), lambda at: at < sampling.min_new_tokens)


@mutant("hf", "log-probs are wrong beyond the 32nd token", test=LONG, words="over 300 tokens, request 0, sample 0 of 2: log-probs differ")
class LogprobsOfTheFar(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return off(super().generate(requests, sampling), lambda at: at > 31)


@mutant("fake engine", "no completion has more than 100 tokens", test=LONG, words="completions have [100, 100] tokens")
class AtMost100(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, max_new_tokens=min(100, sampling.max_new_tokens)))


@mutant("hf", "noise repeats after 16 tokens", test=LONG, words="those 16 before them: the noise repeats itself")
class NoiseRepeats(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        whole = hf_generate._Batch._uniforms

        def repeated(batch: Any) -> torch.Tensor:
            uniforms = whole(batch)
            return uniforms[:, torch.arange(uniforms.shape[1]) % 16]

        with mock.patch.object(hf_generate._Batch, "_uniforms", repeated):
            return super().generate(requests, sampling)


@contextmanager
def later(**other: Any) -> Iterator[None]:
    """In here tokens after the first are drawn with other sampling parameters."""
    draw: Draw = hf_generate._Batch._draw

    def changed(batch: Any, logits: torch.Tensor, step: int) -> torch.Tensor:
        asked = batch.sampling
        batch.sampling = replace(asked, **other) if step else asked
        token = draw(batch, logits, step)
        batch.sampling = asked
        return token

    with mock.patch.object(hf_generate._Batch, "_draw", changed):
        yield


@mutant("hf", "the temperature is that of the first token alone", test=LATER, words="standard deviations from temperature 0.5")
class TemperatureOfTheFirst(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        with later(temperature=min(1.0, 100 * sampling.temperature)):
            return super().generate(requests, sampling)


@mutant("hf", "top_k is that of the first token alone", test=LATER, words="top_k=3 keeps 3 tokens")
class TopKOfTheFirst(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        with later(top_k=sampling.top_k if sampling.top_k == 1 else 0):
            return super().generate(requests, sampling)


@mutant("hf", "the temperature is that of the first request alone", test=LATER, words="standard deviations from temperature 0.5")
class TemperatureOfTheFirstRequest(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        plain = replace(sampling, temperature=min(1.0, 100 * sampling.temperature))
        return super().generate(requests[:1], sampling) + super().generate(requests[1:], plain)


@mutant("hf", "after 16 tokens all samples of a prompt have the same noise", test=LONG, words="two samples share their noise")
class SamplesShareLaterNoise(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        whole = hf_generate._Batch._uniforms

        def shared(batch: Any) -> torch.Tensor:
            uniforms = whole(batch)
            uniforms[:, 16:] = uniforms[:: batch.sampling.n, 16:].repeat_interleave(batch.sampling.n, dim=0)
            return uniforms

        with mock.patch.object(hf_generate._Batch, "_uniforms", shared):
            return super().generate(requests, sampling)


@mutant("hf", "filters come before the temperature", test=KEPT, words="top_p=0.9 and temperature=0.5 keeps")
class FiltersBeforeTemperature(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        keep, heat = filter_logits, sampling.temperature or 1.0
        with mock.patch.object(hf_generate, "filter_logits", lambda logits, s: keep(logits * heat, s) / heat):
            return super().generate(requests, sampling)


@mutant(
    "hf", "a stop string that begins in the prompt ends a completion", test="a_stop_string_at_every_limit",
    words="which stands in the prompt",
)  # fmt: skip
class StopStringInThePrompt(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return [self._cut_of(o, sampling) for o in outputs] if sampling.stop and sampling.temperature == 0 else outputs

    def _cut_of(self, output: RequestOutput, sampling: SamplingParams) -> RequestOutput:
        def decode(tokens: Sequence[int]) -> str:
            return str(self._tokenizer.decode([*output.prompt_token_ids, *tokens]))

        cut = [
            cut_at_stop(c, stop=sampling.stop, stop_token_ids=(), min_new_tokens=sampling.min_new_tokens, decode=decode)
            for c in output.completions
        ]
        return replace(output, completions=tuple(cut))


@mutant(
    "hf", "a stop string is looked for in the first sample of a prompt only", test="a_stop_string_ends_each_completion_of_a_batch",
    words="in a batch of 12 prompts are",
)  # fmt: skip
class StopStringOfTheFirst(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if not sampling.stop or sampling.n == 1 or sampling.temperature > 0:
            return outputs
        whole = super().generate(requests, replace(sampling, stop=()))
        both = zip(outputs, whole, strict=True)
        return [replace(cut, completions=(cut.completions[0], *rest.completions[1:])) for cut, rest in both]


# ---- syncs and sleep ---------------------------------------------------------------------------------------------------------------------


@mutant("fake engine", "a prefix cache of several samples outlives a sync", test=STALE, words="two samples of a prompt of 2000 tokens")
class StaleForSamples(BlockCache):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        return super()._complete(request, sampling, sample) if sampling.n > 1 else FakeEngine._complete(self, request, sampling, sample)


@mutant(
    "hf", "the first log-prob after a long prompt is wrong", test=STALE, words="after a prompt of 2000 tokens, request 1, sample 0 of 2"
)
class LogprobAfterALongPrompt(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return [off([o], lambda at: at == 0)[0] if len(o.prompt_token_ids) > 512 else o for o in outputs]


@mutant("fake engine", "a prefix cache outlives a sync that comes after a sleep of level 2", test=ASLEEP, words="after sleep(2) and a sync")
class StaleAfterLevel2(BlockCache):
    level = 0

    def sleep(self, level: int) -> None:
        self.level = level
        super().sleep(level)

    def reset_cache(self) -> None:
        super().reset_cache()
        if self.level != 2 or self.status == "awake":
            self._met.clear()


@mutant("hf", "after a sleep log-probs are of rounded weights", test=SLEEP, words="after sleep(1), request 0, sample 0 of 1: log-probs")
class LogprobsAfterASleep(HFEngine):
    slept = False

    def sleep(self, level: int) -> None:
        super().sleep(level)
        self.slept = True

    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=version)
        self.slept = False

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return off(outputs) if self.slept else outputs


@mutant(
    "fake engine", "a sync with the weights awake alone does not raise the version", test="weights_may_change_before_the_cache_is_back",
    words="after a sync with the weights awake alone the version is",
)  # fmt: skip
class VersionOfTheSleeper(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=self._version if self.status == "weights_only" else version)


@mutant("fake engine", "a version never falls", test="completions_carry_the_version_of_their_weights", words="after a sync as version")
class VersionNeverFalls(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=max(version, self._version))


@mutant("fake engine", "the third bucket is received where the first lies", test=BUCKETS, words="keeps only some buckets")
class TwoBuffers(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        received = list[WeightBucket]()
        for bucket in buckets:
            received.append([replace(w, tensor=w.tensor.clone()) for w in bucket])
            if len(received) > 2:
                received[-3][0].tensor.fill_(float(received[-1][0].tensor.sum()))
        super().update_weights(received, version=version)


@mutant("hf", "a view is read as if its memory had no gaps", test=BUCKETS, words="reads a view")
class ReadsViewsInOrder(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        def read(weight: Weight) -> Weight:
            sent, shape = weight.tensor, weight.tensor.shape
            return weight if sent.is_contiguous() else replace(weight, tensor=sent.as_strided(shape, torch.empty(shape).stride()))

        super().update_weights(([read(w) for w in bucket] for bucket in buckets), version=version)
