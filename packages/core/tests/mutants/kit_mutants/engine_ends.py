"""Which faults may an engine have with how completions end? One for each class here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kit_mutants.mutant import mutant
from lightrft.engine.hf import HFEngine
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import Completion, Request, RequestOutput, SamplingParams

Outputs = list[RequestOutput]

LENGTH = "a_completion_cut_by_a_limit_says_length"
STOP = "a_stop_token_ends_a_completion_and_stays_in_it"
END = "the_end_of_sequence_token_ends_unless_it_is_ignored"


@mutant("fake engine", "the finish reason is `stop` on length", test=LENGTH, words="finish reason 'stop'")
class StopOnLength(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        return replace(super()._complete(request, sampling, sample), finish_reason="stop")


@mutant("fake engine", "one token more than max_new_tokens", test=LENGTH, words="ended with 6 tokens")
class OneTokenMore(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        longer = sampling.max_new_tokens == 5
        return super()._complete(request, replace(sampling, max_new_tokens=sampling.max_new_tokens + longer), sample)


@mutant("fake engine", "the finish reason is `length` on a stop token", test=STOP, words="finish reason")
class LengthOnStop(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        completion = super()._complete(request, sampling, sample)
        return replace(completion, finish_reason="length") if sampling.stop_token_ids else completion


@mutant("fake engine", "a stop token is cut off", test=STOP, words="with the stop token")
class StopTokenCut(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        c = super()._complete(request, sampling, sample)
        return replace(c, token_ids=list(c.token_ids)[:-1]) if c.token_ids[-1] in sampling.stop_token_ids else c


@mutant("fake engine", "the end of sequence is cut off", test=END, words="it has to stay in them")
class EndCut(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        c = super()._complete(request, sampling, sample)
        return replace(c, token_ids=list(c.token_ids)[:-1]) if sampling.temperature == 1.9 and c.finish_reason == "stop" else c


@mutant("fake engine", "ignore_eos is ignored", test=END, words="with ignore_eos")
class IgnoreEosIgnored(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        return super()._complete(request, replace(sampling, ignore_eos=False), sample)


@mutant(
    "hf", "min_new_tokens keeps the caller's stop tokens away, not the model's own", test="min_new_tokens_keeps_stop_tokens_away",
    words="and the end of sequence",
)  # fmt: skip
class MinNewTokensMissTheEnd(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        least = sampling.min_new_tokens if sampling.stop_token_ids else 0
        return super().generate(requests, replace(sampling, min_new_tokens=least))


@mutant(
    "hf", "stop strings are looked for in one token at a time", test="a_stop_string_ends_a_completion_with_the_token_that_completes_it",
    words="with the stop string",
)  # fmt: skip
class StopStringsInOneToken(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, stop=tuple(s for s in sampling.stop if len(s) == 1 or s.startswith("<"))))


@mutant("hf", "only the first stop token counts", test=STOP, words="with the stop token")
class FirstStopTokenOnly(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, stop_token_ids=sampling.stop_token_ids[:1]))


@mutant(
    "hf", "only the first stop string counts", test="a_stop_string_ends_a_completion_with_the_token_that_completes_it",
    words="with the stop string",
)  # fmt: skip
class FirstStopStringOnly(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, stop=sampling.stop[:1]))
