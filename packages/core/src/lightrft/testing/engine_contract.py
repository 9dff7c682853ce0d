"""Does an engine keep its promises? A test class to inherit: name the engine, and every promise of `InferenceEngine` is a test.

    class TestMyEngine(EngineContract):
        engine_name = "mine"

What the engine declares is tested; the process holds one engine at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from lightrft.distributed.buckets import WeightBucket
from lightrft.engine.base import ALL_TAGS
from lightrft.engine.progress import nobody_waits, unwatched
from lightrft.errors import EngineStateError, LightRFTError, WeightSyncError
from lightrft.plugins.specs import Capability
from lightrft.testing.engine_bench import (
    GREEDY,
    MAX_MODEL_LEN,
    EngineBench,
    greedy_tokens,
    logprob_error,
    requests_of,
    weights_of,
)
from lightrft.testing.tiny import EOS, EOS_ID, Family, tiny_tokenizer
from lightrft.types import EngineStatus, RequestOutput, SamplingParams

SHORT, MIDDLE = [3, 4, 5], list(range(4, 40))
LONG = [3 + (7 * i) % 50 for i in range(200)]
"""More than a block of any engine's cache, so that a stale one shows."""
PROMPTS = [SHORT, LONG, MIDDLE]

FP32_ERROR = 1e-5
"""Of log-probs against transformers on the CPU."""


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(c.token_ids) for c in output.completions] for output in outputs]


class EngineContract:
    """Every promise, on one architecture; subclass once more with another `family` and `tie` for others."""

    engine_name: ClassVar[str]
    family: ClassVar[Family] = "qwen3"
    tie: ClassVar[bool] = False

    @pytest.fixture(scope="class")
    @classmethod
    def shared_bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBench]:
        bench = EngineBench(cls.engine_name, tmp_path_factory.mktemp("engine"), family=cls.family, tie=cls.tie)
        yield bench
        bench.close()

    @pytest.fixture
    def bench(self, shared_bench: EngineBench) -> EngineBench:
        """Awake, with the weights of some model (`bench.model`)."""
        shared_bench.engine.wake_up(ALL_TAGS)
        return shared_bench

    # ---- what is drawn -------------------------------------------------------------------------------------------------------------------

    def test_greedy_tokens_are_those_of_transformers_before_and_after_each_sync(self, bench: EngineBench) -> None:
        for index in (None, 1, 2, 0):
            if index is not None:
                bench.sync(bench.models[index])
            outputs = bench.engine.generate(requests_of(PROMPTS), GREEDY)
            assert tokens(outputs) == [[greedy_tokens(bench.model, p, max_new_tokens=8)] for p in PROMPTS], f"after sync {bench.version}"
            assert {c.weight_version for o in outputs for c in o.completions} == {bench.version}
            if bench.can(Capability.LOGPROBS):
                assert max(logprob_error(bench.model, o, c) for o in outputs for c in o.completions) < FP32_ERROR

    def test_logprobs_are_untempered_unfiltered_and_only_where_asked(self, bench: EngineBench) -> None:
        self._needs(bench, Capability.LOGPROBS)
        asked = [True, False, True]
        outputs = bench.engine.generate(
            requests_of(PROMPTS, logprobs=asked), SamplingParams(temperature=0.7, top_p=0.9, n=2, max_new_tokens=6)
        )
        assert [[c.logprobs is not None for c in o.completions] for o in outputs] == [[a, a] for a in asked]
        assert max(logprob_error(bench.model, o, c) for o in outputs for c in o.completions if c.logprobs is not None) < FP32_ERROR

    def test_outputs_answer_the_requests_in_order_with_n_completions_each(self, bench: EngineBench) -> None:
        requests = [replace(r, id=7 + 3 * r.id) for r in requests_of([[3 + i, 4, 5] for i in range(12)], logprobs=False)]
        outputs = bench.engine.generate(requests, SamplingParams(n=4, max_new_tokens=6))
        assert [(o.id, list(o.prompt_token_ids), len(o.completions)) for o in outputs] == [
            (r.id, list(r.prompt_token_ids), 4) for r in requests
        ]
        assert len({tuple(t) for t in tokens(outputs)[0]}) > 1, "the n completions of a prompt are different draws"

    def test_greedy_completions_of_one_prompt_are_alike(self, bench: EngineBench) -> None:
        [output] = bench.engine.generate(requests_of([SHORT]), replace(GREEDY, n=3))
        assert tokens([output]) == [[greedy_tokens(bench.model, SHORT, max_new_tokens=8)] * 3]

    def test_it_reports_all_that_it_returns_or_nothing(self, bench: EngineBench) -> None:
        told = {"tokens": 0, "completions": 0}

        def report(*, tokens: int = 0, completions: int = 0) -> None:
            told["tokens"] += tokens
            told["completions"] += completions

        bench.engine.report = report
        outputs = bench.engine.generate(requests_of(PROMPTS), SamplingParams(n=3, max_new_tokens=6))
        bench.engine.report = unwatched
        assert told["tokens"] in (0, sum(len(c.token_ids) for o in outputs for c in o.completions))
        assert told["completions"] in (0, 3 * len(PROMPTS))

    def test_it_hands_over_what_it_returns_each_once_or_nothing(self, bench: EngineBench) -> None:
        early: list[RequestOutput] = []
        bench.engine.finished = early.append
        outputs = bench.engine.generate(requests_of(PROMPTS), SamplingParams(n=3, max_new_tokens=6))
        bench.engine.finished = nobody_waits
        assert sorted(early, key=lambda o: o.id) in ([], outputs)

    def test_no_requests_give_no_outputs(self, bench: EngineBench) -> None:
        assert bench.engine.generate([], GREEDY) == []

    def test_a_seed_fixes_the_draw_whatever_else_is_in_the_batch(self, bench: EngineBench) -> None:
        self._needs(bench, Capability.SEED)
        sampling = SamplingParams(n=2, max_new_tokens=8)
        together = tokens(bench.engine.generate(requests_of(PROMPTS), sampling))
        alone = [tokens(bench.engine.generate([r], sampling))[0] for r in reversed(requests_of(PROMPTS))][::-1]
        assert together == alone
        assert together != tokens(bench.engine.generate(requests_of(PROMPTS, first_seed=5), sampling))

    def test_top_k_1_is_greedy_and_filters_shrink_the_support(self, bench: EngineBench) -> None:
        greedy = greedy_tokens(bench.model, SHORT, max_new_tokens=8)
        assert tokens(bench.engine.generate(requests_of([SHORT]), SamplingParams(top_k=1, max_new_tokens=8))) == [[greedy]]
        assert tokens(bench.engine.generate(requests_of([SHORT]), SamplingParams(top_p=1e-6, max_new_tokens=8))) == [[greedy]]
        if bench.can(Capability.MIN_P):
            sampling = SamplingParams(min_p=0.999, max_new_tokens=8)
            assert tokens(bench.engine.generate(requests_of([SHORT]), sampling)) == [[greedy]]

    def test_draws_follow_the_tempered_distribution(self, bench: EngineBench) -> None:
        drawn = bench.engine.generate(requests_of([SHORT], logprobs=False), SamplingParams(temperature=0.5, n=600, max_new_tokens=1))[0]
        counts = torch.zeros(64)
        for completion in drawn.completions:
            counts[completion.token_ids[0]] += 1
        with torch.no_grad():
            expected = (bench.model(torch.tensor([SHORT])).logits[0, -1].double() / 0.5).softmax(-1)
        # 5 standard deviations of a binomial share, and one draw for the rarest
        bound = 5 * (expected * (1 - expected) / 600).sqrt() + 1 / 600
        assert ((counts / 600 - expected).abs() <= bound).all()

    # ---- why it ends ---------------------------------------------------------------------------------------------------------------------

    def test_a_stop_token_ends_a_completion_and_stays_in_it(self, bench: EngineBench) -> None:
        greedy = greedy_tokens(bench.model, SHORT, max_new_tokens=8)
        stop = greedy[2]
        [output] = bench.engine.generate(requests_of([SHORT]), replace(GREEDY, stop_token_ids=(stop,)))
        [completion] = output.completions
        assert (list(completion.token_ids), completion.finish_reason) == (greedy[: greedy.index(stop) + 1], "stop")

    def test_the_end_of_sequence_token_ends_unless_it_is_ignored(self, bench: EngineBench) -> None:
        requests = requests_of([SHORT], logprobs=False)
        sampling = SamplingParams(temperature=1.9, n=64, max_new_tokens=16)
        ended = [c for c in bench.engine.generate(requests, sampling)[0].completions if c.finish_reason == "stop"]
        assert ended and all(list(c.token_ids).index(EOS_ID) == len(c.token_ids) - 1 for c in ended)
        ignoring = bench.engine.generate(requests, replace(sampling, ignore_eos=True))[0].completions
        assert {(len(c.token_ids), c.finish_reason) for c in ignoring} == {(16, "length")}

    def test_a_completion_ends_with_the_context(self, bench: EngineBench) -> None:
        prompt = [3 + i % 50 for i in range(MAX_MODEL_LEN - 3)]
        [output] = bench.engine.generate(requests_of([prompt]), SamplingParams(max_new_tokens=64, ignore_eos=True))
        assert (len(output.completions[0].token_ids), output.completions[0].finish_reason) == (3, "length")

    def test_min_new_tokens_keeps_stop_tokens_away(self, bench: EngineBench) -> None:
        self._needs(bench, Capability.MIN_NEW_TOKENS)
        stop = greedy_tokens(bench.model, SHORT, max_new_tokens=8)[0]
        sampling = replace(GREEDY, stop_token_ids=(stop,), min_new_tokens=4)
        [output] = bench.engine.generate(requests_of([SHORT]), sampling)
        assert len(output.completions[0].token_ids) >= 4
        assert stop not in list(output.completions[0].token_ids)[:4]

    def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(self, bench: EngineBench) -> None:
        self._needs(bench, Capability.STOP_STRINGS)
        greedy = greedy_tokens(bench.model, SHORT, max_new_tokens=8)
        at = next(i for i, token in enumerate(greedy) if token > 2 and token not in greedy[:i])
        text = str(tiny_tokenizer().decode([greedy[at]]))
        [output] = bench.engine.generate(requests_of([SHORT]), replace(GREEDY, stop=(text,)))
        assert (list(output.completions[0].token_ids), output.completions[0].finish_reason) == (greedy[: at + 1], "stop")

    def test_special_tokens_are_text_for_stop_strings_only_where_that_is_asked(self, bench: EngineBench) -> None:
        self._needs(bench, Capability.STOP_STRINGS)
        requests = requests_of([SHORT], logprobs=False)
        sampling = SamplingParams(temperature=1.9, n=64, max_new_tokens=16, ignore_eos=True, stop=(EOS,))
        unseen = bench.engine.generate(requests, sampling)[0].completions
        assert {(len(c.token_ids), c.finish_reason) for c in unseen} == {(16, "length")}
        seen = bench.engine.generate(requests, replace(sampling, skip_special_tokens=False))[0].completions
        ended = [c for c in seen if c.finish_reason == "stop"]
        assert ended and all(list(c.token_ids).index(EOS_ID) == len(c.token_ids) - 1 for c in ended)

    # ---- what is refused -----------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("prompt", "words"),
        [
            ([], "no tokens"),
            ([3, 64], "outside the vocabulary"),
            ([3, -1], "outside the vocabulary"),
            ([3] * MAX_MODEL_LEN, "no room"),
        ],
    )
    def test_a_bad_request_is_named_and_harms_nobody(self, bench: EngineBench, prompt: list[int], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            bench.engine.generate(requests_of([SHORT, prompt]), GREEDY)
        assert bench.engine.status is EngineStatus.AWAKE
        assert tokens(bench.engine.generate(requests_of([SHORT]), GREEDY)) == [[greedy_tokens(bench.model, SHORT, max_new_tokens=8)]]

    @pytest.mark.parametrize("fault", ["a tensor is missing", "an unknown name", "another shape", "another dtype"])
    def test_weights_that_do_not_fit_are_refused_and_never_half_used(self, bench: EngineBench, fault: str) -> None:
        before = bench.model
        other = bench.models[1] if before is not bench.models[1] else bench.models[2]
        with pytest.raises(WeightSyncError, match="down_proj"):
            bench.engine.update_weights(spoilt(weights_of(other), fault), version=bench.version + 1)
        if bench.engine_as_it_is.status is EngineStatus.UNUSABLE:
            with pytest.raises(EngineStateError):
                bench.engine_as_it_is.generate(requests_of([SHORT]), GREEDY)
        else:
            outputs = bench.engine.generate(requests_of(PROMPTS), GREEDY)
            assert tokens(outputs) == [[greedy_tokens(before, p, max_new_tokens=8)] for p in PROMPTS]

    # ---- sleep ---------------------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("level", [1, 2])
    def test_asleep_it_refuses_and_awake_it_is_what_it_was(self, bench: EngineBench, level: int) -> None:
        engine = bench.engine
        if not bench.can(Capability.SLEEP_1 if level == 1 else Capability.SLEEP_2):
            with pytest.raises(LightRFTError):
                engine.sleep(level)
            assert engine.status is EngineStatus.AWAKE, "a sleep that was refused changes nothing"
            return
        engine.sleep(level)
        engine.sleep(level)
        self._is(bench, EngineStatus.ASLEEP)
        with pytest.raises(EngineStateError):
            engine.generate(requests_of([SHORT]), GREEDY)
        with pytest.raises(EngineStateError):
            engine.update_weights(weights_of(bench.models[1]), version=bench.version + 1)
        engine.wake_up(ALL_TAGS[:1])
        self._is(bench, EngineStatus.WEIGHTS_ONLY)
        if level == 2:
            bench.sync(bench.models[1])
        engine.wake_up(ALL_TAGS)
        engine.wake_up(ALL_TAGS)
        self._is(bench, EngineStatus.AWAKE)
        assert tokens(engine.generate(requests_of(PROMPTS), GREEDY)) == [[greedy_tokens(bench.model, p, max_new_tokens=8)] for p in PROMPTS]

    def test_after_shutdown_every_call_is_refused(self, bench: EngineBench) -> None:
        engine = bench.engine
        engine.shutdown()
        engine.shutdown()
        assert engine.status is EngineStatus.UNUSABLE
        with pytest.raises(EngineStateError):
            engine.generate(requests_of([SHORT]), GREEDY)
        with pytest.raises(EngineStateError):
            engine.update_weights([], version=1)

    def _is(self, bench: EngineBench, status: EngineStatus) -> None:
        assert bench.engine_as_it_is.status is status

    def _needs(self, bench: EngineBench, capability: Capability) -> None:
        if not bench.can(capability):
            pytest.skip(f"engine {bench.spec.name!r} does not declare {str(capability)!r} on {bench.device.type}")


def spoilt(buckets: list[WeightBucket], fault: str) -> list[WeightBucket]:
    """The same buckets with one fault, in the first layer's down_proj."""
    name = "model.layers.0.mlp.down_proj.weight"
    kept = []
    for bucket in buckets:
        changed: WeightBucket = []
        for weight in bucket:
            if weight.names[0] != name:
                changed.append(weight)
            elif fault == "an unknown name":
                changed.append(replace(weight, names=(name.replace("layers.0", "layers.9"),)))
            elif fault == "another shape":
                changed.append(replace(weight, tensor=weight.tensor[:-1]))
            elif fault == "another dtype":
                changed.append(replace(weight, tensor=weight.tensor.to(torch.bfloat16)))
        kept.append(changed)
    return kept
