"""Which faults may an inference engine have? One for each class here, on the fake engine and on `hf`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lightrft.distributed.buckets import Weight, WeightBucket
from lightrft.distributed.checksum import WeightSum
from lightrft.engine.base import EngineSetup, WakeTag
from lightrft.engine.hf import HFEngine
from lightrft.plugins.specs import Capability
from lightrft.testing.fake_engine import VOCAB_SIZE, FakeEngine
from lightrft.testing.mutants.mutant import mutant
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams

Outputs = list[RequestOutput]

SYNC = "greedy_tokens_are_those_of_the_model_before_and_after_each_sync"
CACHE = "nothing_computed_with_older_weights_is_used_again"
LOGPROBS = "logprobs_are_untempered_unfiltered_and_only_where_asked"
ORDER = "outputs_answer_the_requests_in_order"
SAMPLES = "n_completions_belong_to_their_prompt_and_differ"
LENGTH = "a_completion_cut_by_a_limit_says_length"
STOP = "a_stop_token_ends_a_completion_and_stays_in_it"
END = "the_end_of_sequence_token_ends_unless_it_is_ignored"
SLEEP = "asleep_it_refuses_and_awake_it_is_what_it_was"
BAD_REQUEST = "a_bad_request_is_named_and_harms_nobody"
BAD_WEIGHTS = "weights_that_do_not_fit_are_refused_and_never_half_used"
ARRIVES = "every_tensor_of_a_sync_arrives"
SHUTDOWN = "after_shutdown_every_call_is_refused"
SEED = "a_seed_fixes_the_draw_whatever_else_is_in_the_batch"
FILTERS = "filters_narrow_the_draw"
SUMS = "sums_are_of_the_tensors_that_it_holds"


def each(outputs: Outputs, change: Any) -> Outputs:
    """The same outputs with every completion changed."""
    return [replace(o, completions=tuple(change(c) for c in o.completions)) for o in outputs]


# ---- weights -----------------------------------------------------------------------------------------------------------------------------


@mutant("fake engine", "weights of a sync are read and not used", test=SYNC, words="stale weights")
class StaleWeights(FakeEngine):
    def _hold(self, tensors: Mapping[tuple[str, ...], torch.Tensor]) -> None:
        if not self._weights:
            super()._hold(tensors)


@mutant("fake engine", "the folder's weights are ignored: version 0 is something else", test=SYNC, words="after sync 0")
class NotTheFolder(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._weights = 1


@mutant("fake engine", "a prefix cache that is never reset", test=CACHE, words="stale cache")
class StaleCache(FakeEngine):
    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        cache = self.__dict__.setdefault("cache", {})
        key = (tuple(request.prompt_token_ids), sampling.temperature, request.seed, sample, tuple(tokens))
        return int(cache.setdefault(key, super()._next(request, sampling, sample, tokens)))


@mutant("hf", "a cache of answers that is reset by the first sync only", test=CACHE, words="stale cache")
class CacheResetOnce(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        cache, key = self.__dict__.setdefault("cache", {}), repr((requests, sampling))
        if self._version not in (0, 1) and key not in cache:
            cache[key] = super().generate(requests, sampling)
        return [*cache[key]] if key in cache and self.status is EngineStatus.AWAKE else super().generate(requests, sampling)


@mutant("fake engine", "half of a fused module: up_proj is not taken over", test=ARRIVES, words="half of a module")
class HalfAFusedModule(FakeEngine):
    def _hold(self, tensors: Mapping[tuple[str, ...], torch.Tensor]) -> None:
        kept = {names: t for names, t in tensors.items() if "up_proj" not in names[0]}
        super()._hold(tensors)
        self._weights = sum(self._sums[names].bits for names in kept) if self._version else self._weights


@mutant("hf", "half of a fused module: k_proj keeps its old values", test=ARRIVES, words="changes only k_proj.weight")
class HfHalfAFusedModule(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        kept = {n: p.clone() for n, p in self._model.named_parameters() if "layers.0.self_attn.k_proj.weight" in n and not p.is_meta}
        super().update_weights(buckets, version=version)
        self._model.load_state_dict(kept, strict=False)


@mutant("hf", "the embedding is not taken over", test=ARRIVES, words="embed_tokens.weight")
class EmbeddingForgotten(HFEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        kept = self._model.get_input_embeddings().weight.clone()
        super().update_weights(buckets, version=version)
        self._model.get_input_embeddings().weight.data.copy_(kept)


@mutant("fake engine", "keeps the sender's tensors", test="buckets_are_read_once_and_may_be_used_again_by_the_sender", words="copies")
class KeepsTheSendersTensors(FakeEngine):
    def _received(self, weight: Weight) -> torch.Tensor:
        return weight.tensor


@mutant("fake engine", "a load that ignores a missing parameter", test=BAD_WEIGHTS, words="a tensor is missing were accepted")
class MissingIsIgnored(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        return [p for p in super()._problems(sent) if not p.startswith("the actor lacks")]


@mutant("fake engine", "a load that ignores unknown names", test=BAD_WEIGHTS, words="an unknown name were accepted")
class UnknownIsIgnored(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        known = {names: t for names, t in sent.items() if set(names) & self._shapes.keys()}
        return (
            [p for p in super()._problems(known) if not p.startswith("the actor lacks")]
            if len(known) < len(sent)
            else super()._problems(sent)
        )


@mutant("fake engine", "weights of another dtype are cast in silence", test=BAD_WEIGHTS, words="another dtype were accepted")
class DtypeIsIgnored(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        return [p for p in super()._problems(sent) if "another dtype" not in p]


@mutant("fake engine", "refused weights are half in use", test=BAD_WEIGHTS, words="half of them")
class HalfOfRefusedWeights(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        found = super()._problems(sent)
        if found:
            self._hold(sent)
        return found


@mutant("fake engine", "a refusal of weights that names none", test=BAD_WEIGHTS, words="without naming the parameter")
class RefusalWithoutAName(FakeEngine):
    def _problems(self, sent: Mapping[tuple[str, ...], torch.Tensor]) -> list[str]:
        return ["they do not fit"] if super()._problems(sent) else []


@mutant("fake engine", "the version is raised by weights that were refused", test=BAD_WEIGHTS, words="carry the version")
class VersionOfRefusedWeights(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        self._version = version
        super().update_weights(buckets, version=version)


@mutant(
    "fake engine", "the version is not raised", test="completions_carry_the_version_of_their_weights", words="carry the weight version [1]"
)
class VersionNotRaised(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        super().update_weights(buckets, version=min(version, 1))


@mutant("fake engine", "sums are remembered from the first sync", test=SUMS, words="are not those of what was synced")
class RememberedSums(FakeEngine):
    def weight_sums(self) -> Mapping[tuple[str, ...], WeightSum]:
        first: Mapping[tuple[str, ...], WeightSum] = self.__dict__.setdefault("first", dict(self._sums))
        return first


@mutant("fake engine", "declares sums and gives none", test=SUMS, words="the sums of nothing")
class NoSums(FakeEngine):
    def weight_sums(self) -> Mapping[tuple[str, ...], WeightSum]:
        return {}


@mutant("fake engine", "needed shapes are wrong", test="needed_weights_are_named_with_their_shapes", words="weight_shapes has")
class WrongShapes(FakeEngine):
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: (1, *shape) for name, shape in self._shapes.items()}


# ---- draws -------------------------------------------------------------------------------------------------------------------------------


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


@mutant("fake engine", "greedy completions of one prompt differ", test="greedy_completions_of_one_prompt_are_alike", words="three times")
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


# ---- log-probs ---------------------------------------------------------------------------------------------------------------------------


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


# ---- ends --------------------------------------------------------------------------------------------------------------------------------


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


# ---- states ------------------------------------------------------------------------------------------------------------------------------


@mutant("fake engine", "sleep loses the weights", test=SLEEP, words="does not have the weights that it had")
class SleepLosesWeights(FakeEngine):
    def sleep(self, level: int) -> None:
        super().sleep(level)
        self._weights = 0 if level == 1 else None


@mutant("hf", "level 2 leaves buffers undefined", test=SLEEP, words="after sleep(2) and wake_up")
class BuffersLost(HFEngine):
    def _bring_weights(self) -> None:
        if self._weights_held:
            super()._bring_weights()
        else:
            self._model = self._model.to_empty(device=self.setup.device)
            for buffer in self._model.buffers():
                buffer.zero_()


@mutant("fake engine", "generate while asleep works in silence", test=SLEEP, words="generate while the engine is asleep was accepted")
class GeneratesAsleep(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        before, self._status = self._status, EngineStatus.AWAKE if self._status is EngineStatus.ASLEEP else self._status
        outputs = super().generate(requests, sampling)
        self._status = before
        return outputs


@mutant(
    "fake engine", "an update while asleep works in silence", test=SLEEP, words="update_weights while the engine is asleep was accepted"
)
class UpdatesAsleep(FakeEngine):
    def update_weights(self, buckets: Iterable[WeightBucket], *, version: int) -> None:
        if self._status is not EngineStatus.ASLEEP:
            super().update_weights(buckets, version=version)


@mutant("fake engine", "a second sleep wakes", test=SLEEP, words="after sleep(1) the status is 'awake'")
class DoubleSleep(FakeEngine):
    def sleep(self, level: int) -> None:
        asleep = self._status is EngineStatus.ASLEEP
        super().sleep(level)
        self._status = EngineStatus.AWAKE if asleep else self._status


@mutant("fake engine", "wake_up of the weights says that all is awake", test=SLEEP, words="after wake_up(weights) the status is 'awake'")
class WakesAll(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up(("weights", "kv_cache"))


@mutant("fake engine", "wake_up loses the KV cache", test=SLEEP, words="the status is 'weights_only', expected 'awake'")
class WakeLosesTheCache(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up([tag for tag in tags if tag == "weights"])


@mutant("fake engine", "weights that level 2 dropped are made up", test=SLEEP, words="without weights (level 2 dropped them) was accepted")
class Garbage(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        super().wake_up(tags)
        self._weights = self._weights or 12345


@mutant("fake engine", "level 2 is not declared and silently accepted", test=SLEEP, words="silently accepted", hides=[Capability.SLEEP_2])
class UndeclaredSleep(FakeEngine):
    pass


@mutant("fake engine", "a sync with weights alone awake is lost", test="weights_may_change_before_the_cache_is_back", words="was lost")
class SyncLostOnWake(FakeEngine):
    def wake_up(self, tags: Collection[WakeTag]) -> None:
        if self._status is EngineStatus.ASLEEP:
            self.__dict__["kept"] = self._weights
        super().wake_up(tags)
        if self._status is EngineStatus.AWAKE and self.__dict__.get("kept"):
            self._weights = self.__dict__.pop("kept")


@mutant("fake engine", "the status is wrong after an error", test=BAD_REQUEST, words="after a request that was refused")
class StatusAfterAnError(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        try:
            return super().generate(requests, sampling)
        except ValueError:
            self._status = EngineStatus.WEIGHTS_ONLY
            raise


@mutant("fake engine", "a refusal that does not say which request", test=BAD_REQUEST, words="without the request's id")
class NamelessRequest(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        try:
            return super().generate(requests, sampling)
        except ValueError as error:
            raise ValueError("a request is wrong") from error


@mutant("hf", "unknown tokens are clamped in silence", test=BAD_REQUEST, words="outside the vocabulary was accepted")
class TokensClamped(HFEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        clamped = [replace(r, prompt_token_ids=[min(t, self._vocab_size - 1) for t in r.prompt_token_ids]) for r in requests]
        return super().generate(clamped, sampling)


@mutant("fake engine", "generates after shutdown", test=SHUTDOWN, words="generate while the engine is shut down was accepted")
class GeneratesAfterShutdown(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return [] if self._status is EngineStatus.UNUSABLE else super().generate(requests, sampling)


@mutant(
    "hf", "resetting caches after shutdown is an error of Python's", test=SHUTDOWN, words="reset_cache while the engine is shut down raised"
)
class CrashesAfterShutdown(HFEngine):
    def reset_cache(self) -> None:
        self._model.generation_config.cache_implementation = None


# ---- capabilities ------------------------------------------------------------------------------------------------------------------------


@mutant("fake engine", "log-probs declared and absent", test=LOGPROBS, words="completions have them", declares=[Capability.LOGPROBS])
class LogprobsAbsent(FakeEngine):
    pass


@mutant("fake engine", "min_p declared and absent", test=FILTERS, words="'min_p': 0.999", declares=[Capability.MIN_P])
class MinPAbsent(FakeEngine):
    pass


@mutant(
    "fake engine", "min_new_tokens declared and absent", test="min_new_tokens_keeps_stop_tokens_away", words="min_new_tokens=4",
    declares=[Capability.MIN_NEW_TOKENS],
)  # fmt: skip
class MinNewTokensAbsent(FakeEngine):
    pass


@mutant(
    "fake engine", "stop strings declared and absent", test="a_stop_string_ends_a_completion_with_the_token_that_completes_it",
    words="with the stop string", declares=[Capability.STOP_STRINGS],
)  # fmt: skip
class StopStringsAbsent(FakeEngine):
    pass
