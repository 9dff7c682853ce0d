"""Faults of an engine in how completions end. One for each class here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kit_mutants.mutant import mutant
from lightrft.engine.hf import HFEngine
from lightrft.testing.fake_engine import STOP_TOKEN, FakeEngine
from lightrft.types import Completion, Request, RequestOutput, SamplingParams

Outputs = list[RequestOutput]

LENGTH = "a_completion_cut_by_a_limit_says_length"
STOP = "a_stop_token_ends_a_completion_and_stays_in_it"
END = "the_end_of_sequence_token_ends_unless_it_is_ignored"
STOP_LIMIT = "a_stop_token_at_every_limit"
END_LIMIT = "the_end_of_sequence_at_every_limit"


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


@mutant("fake engine", "a stop token as the last one allowed says `length`", test=STOP_LIMIT, words="expected ([")
class LengthOnTheLastStopToken(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        c = super()._complete(request, sampling, sample)
        last = sampling.stop_token_ids and len(c.token_ids) == sampling.max_new_tokens
        return replace(c, finish_reason="length") if last else c


@mutant("fake engine", "a stop token as the last one in the context says `length`", test=STOP_LIMIT, words="where the context has room for")
class LengthAtTheEndOfTheContext(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        c = super()._complete(request, sampling, sample)
        last = len(c.token_ids) + len(request.prompt_token_ids) == self.setup.max_model_len
        return replace(c, finish_reason="length") if last else c


@mutant("fake engine", "with ignore_eos no stop token counts", test=STOP_LIMIT, words="ignore_eos=True")
class IgnoreEosIgnoresStopTokens(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        stops = () if sampling.ignore_eos else sampling.stop_token_ids
        return super()._complete(request, replace(sampling, stop_token_ids=stops), sample)


@mutant("fake engine", "the end of sequence as the last token allowed says `length`", test=END_LIMIT, words="the last allowed: ")
class LengthOnTheLastEnd(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        c = super()._complete(request, sampling, sample)
        return replace(c, finish_reason="length") if len(c.token_ids) == sampling.max_new_tokens else c


@mutant("fake engine", "an ignored end of sequence as the last token says `stop`", test=END_LIMIT, words="with ignore_eos")
class StopOnAnIgnoredEnd(FakeEngine):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        c = super()._complete(request, sampling, sample)
        return replace(c, finish_reason="stop") if c.token_ids[-1] == STOP_TOKEN else c


@mutant(
    "hf", "min_new_tokens keeps a stop token away once too often", test="a_stop_token_right_after_min_new_tokens", words="the last allowed"
)
class MinNewTokensOneTooMany(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        more = min(sampling.max_new_tokens, sampling.min_new_tokens + 1) if sampling.min_new_tokens else 0
        return super().generate(requests, replace(sampling, min_new_tokens=more))


def told_length(outputs: Outputs, sampling: SamplingParams) -> Outputs:
    """The same, where what ends with the last token allowed says `length`."""

    def told(c: Completion) -> Completion:
        return replace(c, finish_reason="length") if len(c.token_ids) == sampling.max_new_tokens else c

    return [replace(o, completions=tuple(map(told, o.completions))) for o in outputs]


@mutant(
    "hf", "a stop string that the last token allowed completes says `length`", test="a_stop_string_at_every_limit", words="complete with"
)
class LengthOnTheLastStopString(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return told_length(outputs, sampling) if sampling.stop else outputs


@mutant("hf", "drawn ends at the last token allowed say `length`", test="drawn_completions_say_why_they_ended", words="expected 'stop'")
class LengthOnTheLastDraw(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return told_length(outputs, sampling) if sampling.n > 64 else outputs


@mutant("fake engine", "prompts are answered shortest first", test="outputs_answer_the_requests_in_order", words="in that order")
class ShortestFirst(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return sorted(super().generate(requests, sampling), key=lambda o: len(o.prompt_token_ids))


@mutant(
    "hf", "special tokens are never text for stop strings", words="ended no completion although special tokens are text",
    test="special_tokens_are_text_for_stop_strings_only_where_that_is_asked",
)  # fmt: skip
class SpecialTokensNeverSeen(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate(requests, replace(sampling, skip_special_tokens=True))
