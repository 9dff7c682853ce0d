"""Faults of what an engine draws, and of its log-probs. One for each class here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kit_mutants.mutant import mutant
from lightrft.engine.hf import HFEngine
from lightrft.testing.fake_engine import VOCAB_SIZE, FakeEngine
from lightrft.types import Completion, Request, RequestOutput, SamplingParams

Outputs = list[RequestOutput]

LOGPROBS = "logprobs_are_untempered_unfiltered_and_only_where_asked"
ORDER = "outputs_answer_the_requests_in_order"
SAMPLES = "n_completions_belong_to_their_prompt_and_differ"
SEED = "a_seed_fixes_the_draw_whatever_else_is_in_the_batch"
FILTERS = "filters_narrow_the_draw"
GIVEN = "what_it_is_given_stays_as_it_was"
KEPT = "filters_keep_as_many_tokens_as_they_say"


def each(outputs: Outputs, change: Any) -> Outputs:
    """The same outputs with every completion changed."""
    return [replace(o, completions=tuple(change(c) for c in o.completions)) for o in outputs]


@mutant("fake engine", "outputs are sorted by the length of their prompts", test=ORDER, words="in that order")
class SortedByLength(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return sorted(super().generate(requests, sampling), key=lambda o: (len(o.prompt_token_ids), -o.id))


@mutant("fake engine", "completions stand beside the wrong prompts", test=ORDER, words="answer other prompts")
class CompletionsRotated(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return [replace(o, completions=outputs[i - 1].completions) for i, o in enumerate(outputs)]


@mutant("fake engine", "the n samples of all prompts are interleaved", test=SAMPLES, words="interleaved")
class SamplesInterleaved(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        flat = [o.completions[k] for k in range(sampling.n) for o in outputs]
        return [replace(o, completions=tuple(flat[i * sampling.n : (i + 1) * sampling.n])) for i, o in enumerate(outputs)]


@mutant("fake engine", "completions of a group are reordered in a batch", test=SAMPLES, words="another order")
class ReorderedInAGroup(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return [replace(o, completions=o.completions[::-1]) for o in outputs] if len(requests) > 1 else outputs


@mutant("fake engine", "n copies of one draw", test=SAMPLES, words="one draw, copied")
class OneDrawCopied(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(request, sampling, 0, tokens)


@mutant("hf", "one completion too few", test=SAMPLES, words="asked were n=4")
class OneTooFew(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return [replace(o, completions=o.completions[:3]) for o in super().generate(requests, sampling)]


@mutant("fake engine", "the seed is ignored", test=SEED, words="the seed of a request is not used")
class SeedIgnored(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(replace(request, seed=0), sampling, sample, tokens)


@mutant("fake engine", "a draw depends on the batch", test=SEED, words="depends on what else is in the batch")
class DrawDependsOnTheBatch(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate([replace(r, seed=r.seed + 7 * (len(requests) - i - 1)) for i, r in enumerate(requests)], sampling)


@mutant(
    "fake engine", "greedy completions of one prompt differ", test="greedy_completions_of_one_prompt_are_identical", words="three times"
)
class GreedyDiffers(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return (super()._next(request, sampling, sample, tokens) + (sample if sampling.temperature == 0 else 0)) % VOCAB_SIZE


@mutant("fake engine", "top_k is ignored", test=FILTERS, words="'top_k': 1")
class TopKIgnored(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(request, replace(sampling, top_k=0), sample, tokens)


@mutant("hf", "top_p is ignored", test=FILTERS, words="'top_p': 1e-06")
class TopPIgnored(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, top_p=1.0))


@mutant("hf", "the temperature is ignored", test="draws_follow_the_tempered_distribution", words="at temperature 0.5")
class TemperatureIgnored(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, temperature=min(sampling.temperature * 4, 1.9)))


@mutant(
    "fake engine", "a part of the vocabulary is never drawn", test="draws_follow_the_tempered_distribution", words="standard deviations"
)
class NarrowedDraws(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(request, replace(sampling, top_k=sampling.top_k or 8), sample, tokens)


@mutant("fake engine", "no requests are an error", test="no_requests_give_no_outputs", words="nothing to do")
class NoRequestsIsAnError(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        if not requests:
            raise ValueError("nothing to do")
        return super().generate(requests, sampling)


@mutant("fake engine", "tokens are reported twice", test="it_reports_all_that_it_returns_or_nothing", words="reported")
class ReportedTwice(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        completion = super()._complete(request, sampling, sample)
        self.report(tokens=len(completion.token_ids))
        return completion


@mutant(
    "fake engine", "an output is handed over twice", test="it_hands_over_what_it_returns_each_once_or_nothing", words="handed over early"
)
class HandedOverTwice(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if outputs:
            self.finished(outputs[0])
        return outputs


@mutant("hf", "log-probs after temperature", test=LOGPROBS, words="after temperature 0.7")
class LogprobsAfterTemperature(HFEngine):
    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        def tempered(output: RequestOutput, c: Completion) -> Completion:
            ids = torch.tensor([[*output.prompt_token_ids, *c.token_ids]])
            logits = self._model(ids).logits[0, len(output.prompt_token_ids) - 1 : -1].double() / (sampling.temperature or 1.0)
            values = logits.log_softmax(-1).gather(-1, torch.tensor(list(c.token_ids))[:, None]).squeeze(-1).tolist()
            return replace(c, logprobs=values if c.logprobs is not None else None)

        outputs = super().generate(requests, sampling)
        return [replace(o, completions=tuple(tempered(o, c) for c in o.completions)) for o in outputs]


@mutant("hf", "log-probs shifted by one token", test=LOGPROBS, words="shifted by one")
class LogprobsShifted(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return each(super().generate(requests, sampling), lambda c: replace(c, logprobs=c.logprobs and [0.0, *c.logprobs[:-1]]))


@mutant("hf", "a missing log-prob is padded with 0.0, probability 1", test=LOGPROBS, words="log-probs differ by")
class LogprobsPadded(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return each(super().generate(requests, sampling), lambda c: replace(c, logprobs=c.logprobs and [*c.logprobs[:-1], 0.0]))


@mutant("hf", "one log-prob too few", test=LOGPROBS, words="log-probs for")
class LogprobsCut(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return each(super().generate(requests, sampling), lambda c: replace(c, logprobs=c.logprobs and c.logprobs[:-1]))


@mutant("hf", "log-probs for every prompt where one asks", test=LOGPROBS, words="were asked for prompts")
class LogprobsForAll(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate([replace(r, logprobs=any(q.logprobs for q in requests)) for r in requests], sampling)


@mutant("hf", "greedy log-probs are 0: the tempered distribution has one token", test=LOGPROBS, words="drawn with temperature 0")
class GreedyLogprobsAreZero(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if sampling.temperature > 0:
            return outputs
        return each(outputs, lambda c: replace(c, logprobs=c.logprobs and [0.0 for _ in c.logprobs]))


@mutant("hf", "log-probs among the tokens that top_k keeps", test=LOGPROBS, words="top_k 3")
class LogprobsAfterTopK(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        raised = 1.0 if sampling.top_k else 0.0
        return each(super().generate(requests, sampling), lambda c: replace(c, logprobs=c.logprobs and [p + raised for p in c.logprobs]))


@mutant("hf", "token ids are tensors", test="completions_hold_plain_numbers", words="a completion holds Tensor")
class TokensAreTensors(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return each(super().generate(requests, sampling), lambda c: replace(c, token_ids=list(torch.tensor(list(c.token_ids)))))


@mutant("fake engine", "a finish reason of another library", test="completions_hold_plain_numbers", words="'max_tokens'; possible: stop")
class ForeignFinishReason(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        completion = super()._complete(request, sampling, sample)
        reason: Any = "eos" if completion.token_ids[-1] == 1 else "max_tokens"
        return replace(completion, finish_reason=reason)


@mutant("fake engine", "grows the caller's prompts", test=GIVEN, words="wrote into the prompts of the requests")
class GrowsThePrompts(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        for request, output in zip(requests, outputs, strict=True):
            prompt: Any = request.prompt_token_ids
            prompt.extend(output.completions[0].token_ids)
        return outputs


@mutant("fake engine", "writes into the sampling parameters", test=GIVEN, words="the sampling parameters that it was given")
class WritesIntoSampling(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        if sampling.temperature > 0:  # greedy ones may be a constant of the kit, which the next mutant in this process is asked with
            object.__setattr__(sampling, "stop_token_ids", (1,))
        return outputs


@mutant("fake engine", "top_k is off by one", test=KEPT, words="top_k=3 keeps 3 tokens")
class TopKOffByOne(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        kept = max(1, sampling.top_k - 1) if sampling.top_k else 0
        return super()._next(request, replace(sampling, top_k=kept), sample, tokens)


@mutant("hf", "top_p keeps too many", test=KEPT, words="top_p=0.5 keeps")
class TopPTooWide(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        wider = (1 + sampling.top_p) / 2 if sampling.top_p > 0.1 else sampling.top_p
        return super().generate(requests, replace(sampling, top_p=wider))


@mutant(
    "fake engine", "unknown sampling parameters are left out in silence",
    test="sampling_may_come_as_a_mapping_and_unknown_names_are_refused", words="read_sampling took temprature=0.5",
)  # fmt: skip
class UnknownSamplingIgnored(FakeEngine):
    @classmethod
    def read_sampling(cls, value: Any) -> SamplingParams:
        known = SamplingParams.__dataclass_fields__
        return super().read_sampling({k: v for k, v in value.items() if k in known} if isinstance(value, dict) else value)


@mutant("fake engine", "ids are numbers of 16 bits", test=ORDER, words="in that order")
class IdsOf16Bits(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return [replace(o, id=o.id % 2**16) for o in super().generate(requests, sampling)]


@mutant("fake engine", "seeds that differ by a hundred are identical", test=SEED, words="the seeds from 100 and from 200 on")
class SeedOfTwoDigits(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        return super()._next(replace(request, seed=request.seed % 100), sampling, sample, tokens)


@mutant("hf", "a temperature over 1 is 1", test="draws_follow_the_tempered_distribution", words="at temperature 1.5")
class TemperatureUpTo1(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, temperature=min(sampling.temperature, 1.0)))


@mutant("fake engine", "n is limited to 500", test="draws_follow_the_tempered_distribution", words="n=600 completions, found 500")
class NIsCut(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, n=min(sampling.n, 500)))
