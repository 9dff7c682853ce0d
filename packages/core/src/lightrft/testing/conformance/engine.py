"""Does an inference engine keep every promise of `InferenceEngine`? A class to inherit: name the engine, and each promise is a test.

    class TestMine(EngineConformance):
        engine_name = "mine"

The process holds one engine at a time, alone. A judge says what is right: transformers, on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from lightrft.config.checks import check_engine
from lightrft.config.load import make_config
from lightrft.distributed.buckets import WeightBucket
from lightrft.distributed.checksum import WeightSum, tensor_sum
from lightrft.engine.base import ALL_TAGS
from lightrft.engine.progress import nobody_waits, unwatched
from lightrft.errors import CapabilityError, EngineStateError, LightRFTError, WeightSyncError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.base import Conformance
from lightrft.testing.conformance.integrity import complaint, replaced
from lightrft.testing.conformance.promise import promise
from lightrft.testing.engine_bench import GREEDY, MAX_MODEL_LEN, EngineBench, Judge, TransformersJudge, requests_of, weights_of
from lightrft.testing.tiny import EOS, Family, tiny_tokenizer
from lightrft.types import EngineStatus, RequestOutput, SamplingParams

FP32_ERROR = 1e-5
"""Of log-probs against transformers on the CPU."""

Record = Callable[[str, object], None]

SETTINGS_THAT_ASK: Mapping[Capability, dict[str, Any]] = {
    Capability.TENSOR_PARALLEL: {"engine_tp_size": 2},
    Capability.MEM_UTIL: {"engine_mem_util": 0.5},
    Capability.MULTIMODAL: {"mixed_mm_data": True},
}
SAMPLING_THAT_ASKS: Mapping[Capability, dict[str, Any]] = {
    Capability.LOGPROBS: {},
    Capability.MIN_P: {"min_p": 0.1},
    Capability.MIN_NEW_TOKENS: {"min_new_tokens": 2},
    Capability.STOP_STRINGS: {"stop": ("x",)},
}


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(c.token_ids) for c in output.completions] for output in outputs]


class EngineConformance(Conformance, kit=True):
    """Set `engine_name`; subclass once more with another `family` and `tie` for other architectures."""

    kind = "engine"
    WIRING = frozenset({"engine_name", "family", "tie", "registry", "judge"})
    engine_name: ClassVar[str]
    family: ClassVar[Family] = "qwen3"
    tie: ClassVar[bool] = False
    judge: ClassVar[Judge] = TransformersJudge()

    @pytest.fixture(scope="class")
    @classmethod
    def shared_bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBench]:
        folder = tmp_path_factory.mktemp("engine")
        bench = EngineBench(cls.plugin_name(), folder, family=cls.family, tie=cls.tie, judge=cls.judge, registry=cls.registry())
        yield bench
        bench.close()
        names = replaced()  # by now the engine's own modules are loaded
        if names:
            pytest.fail(complaint(names), pytrace=False)

    @pytest.fixture
    def bench(self, shared_bench: EngineBench) -> EngineBench:
        """Awake, with the weights of some model (`bench.model`)."""
        shared_bench.ready()
        return shared_bench

    # ---- what is drawn -------------------------------------------------------------------------------------------------------------------

    @promise("generate")
    def test_greedy_tokens_are_those_of_the_model_before_and_after_each_sync(self, bench: EngineBench) -> None:
        """Version 0 is the folder's weights; after `update_weights` no token comes from older ones"""
        bench.restart()
        for index in (None, 1, 2, 0):
            if index is not None:
                bench.sync(bench.models[index])
            for prompt, output in zip(
                bench.prompts, bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY), strict=True
            ):
                found, expected = list(output.completions[0].token_ids), bench.greedy(prompt)
                old = "; these are those of the weights before: stale weights" if found == bench.greedy_before(prompt) else ""
                assert found == expected, f"after sync {bench.version} greedy tokens are {found}, of the synced weights {expected}{old}"

    @promise("reset_cache")
    def test_nothing_computed_with_older_weights_is_used_again(self, bench: EngineBench) -> None:
        """Prompts longer than a block of any cache, asked again after a sync and `reset_cache`: the answer is that of the new weights"""
        for model in (bench.models[1], bench.models[2]):
            bench.sync(model)
            for _ in range(2):
                outputs = bench.engine.generate(requests_of([bench.long, bench.long], logprobs=False), GREEDY)
                found = tokens(outputs)
                expected = [[bench.greedy(bench.long)]] * 2
                assert found == expected, (
                    f"a prompt asked before answers {found[0][0]} after sync {bench.version}, not {expected[0][0]}: stale cache"
                )

    @promise("generate", needs=Capability.LOGPROBS)
    def test_logprobs_are_untempered_unfiltered_and_only_where_asked(self, bench: EngineBench, record_property: Record) -> None:
        """Natural logs of the model's own distribution, one for each token, whatever the temperature and filters"""
        if not self._declared(bench, Capability.LOGPROBS, record_property):
            return
        asked = [True, False, True]
        sampling = SamplingParams(temperature=0.7, top_p=0.9, n=2, max_new_tokens=6)
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=asked), sampling)
        given = [[c.logprobs is not None for c in o.completions] for o in outputs]
        assert given == [[a, a] for a in asked], f"log-probs were asked for prompts {asked}, completions have them: {given}"
        for output in outputs:
            for completion in output.completions:
                if completion.logprobs is not None:
                    bench.judge_logprobs(output, completion, sampling, bound=FP32_ERROR)

    @promise("generate")
    def test_outputs_answer_the_requests_in_order(self, bench: EngineBench) -> None:
        """One output for each request, in the order of the requests, with its id and its prompt, and the tokens that belong to it"""
        requests = [replace(r, id=7 + 3 * r.id) for r in requests_of([[3 + i % 11, 4, 5 + i // 11] for i in range(12)], logprobs=False)]
        outputs = bench.engine.generate(requests, GREEDY)
        found = [(o.id, list(o.prompt_token_ids)) for o in outputs]
        expected = [(r.id, list(r.prompt_token_ids)) for r in requests]
        assert found == expected, (
            f"outputs are of the requests {[i for i, _ in found]}, asked were {[i for i, _ in expected]} in that order"
        )
        mixed = [o.id for o in outputs if list(o.completions[0].token_ids) != bench.greedy(o.prompt_token_ids)]
        assert not mixed, f"the completions of requests {mixed} answer other prompts: outputs were reordered"

    @promise("generate")
    def test_n_completions_belong_to_their_prompt_and_differ(self, bench: EngineBench) -> None:
        """`sampling.n` completions each, different draws, in the order of their sample index; none of another prompt"""
        requests = requests_of(bench.prompts, logprobs=False)
        sampling = SamplingParams(n=4, max_new_tokens=6)
        outputs = bench.engine.generate(requests, sampling)
        numbers = [len(o.completions) for o in outputs]
        assert numbers == [4] * len(requests), f"asked were n=4 completions for each prompt, found {numbers}"
        assert all(len({tuple(t) for t in group}) > 1 for group in tokens(outputs)), (
            "the n completions of a prompt are all alike: one draw, copied"
        )
        if bench.can(Capability.SEED):
            alone = [tokens(bench.engine.generate([r], sampling))[0] for r in requests]
            assert [sorted(g) for g in tokens(outputs)] == [sorted(g) for g in alone], (
                "samples of one prompt stand in the group of another: interleaved"
            )
            assert tokens(outputs) == alone, "the completions of a prompt stand in another order when other prompts are in the batch"

    @promise("generate")
    def test_greedy_completions_of_one_prompt_are_alike(self, bench: EngineBench) -> None:
        """Temperature 0 with n > 1 gives n times the same"""
        [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), replace(GREEDY, n=3))
        expected = [bench.greedy(bench.short)] * 3
        assert tokens([output]) == [expected], f"three greedy completions are {tokens([output])[0]}, expected three times {expected[0]}"

    @promise("generate")
    def test_completions_carry_the_version_of_their_weights(self, bench: EngineBench) -> None:
        """The version is that of the last `update_weights`, whatever its number"""
        bench.sync(bench.models[1], version=bench.version + 41)
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY)
        found = {c.weight_version for o in outputs for c in o.completions}
        assert found == {bench.version}, f"completions carry the weight version {sorted(found)} after a sync with version {bench.version}"

    @promise("report")
    def test_it_reports_all_that_it_returns_or_nothing(self, bench: EngineBench) -> None:
        """Tokens and completions told while it generates add up to what is returned"""
        told = {"tokens": 0, "completions": 0}

        def report(*, tokens: int = 0, completions: int = 0) -> None:
            told["tokens"] += tokens
            told["completions"] += completions

        bench.engine.report = report
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), SamplingParams(n=3, max_new_tokens=6))
        bench.engine.report = unwatched
        all_tokens = sum(len(c.token_ids) for o in outputs for c in o.completions)
        assert told["tokens"] in (0, all_tokens), f"reported {told['tokens']} tokens, returned {all_tokens}"
        assert told["completions"] in (0, 3 * len(bench.prompts)), f"reported {told['completions']} completions of {3 * len(bench.prompts)}"

    @promise("finished")
    def test_it_hands_over_what_it_returns_each_once_or_nothing(self, bench: EngineBench) -> None:
        """Outputs handed over while it generates are those that it returns, each once; or none are"""
        early: list[RequestOutput] = []
        bench.engine.finished = early.append
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), SamplingParams(n=3, max_new_tokens=6))
        bench.engine.finished = nobody_waits
        handed = sorted(early, key=lambda o: o.id)
        assert handed in ([], outputs), f"handed over early: {[o.id for o in handed]}, returned: {[o.id for o in outputs]}"

    @promise("generate")
    def test_no_requests_give_no_outputs(self, bench: EngineBench) -> None:
        """An empty list returns an empty list"""
        found = bench.engine.generate([], GREEDY)
        assert found == [], f"no requests gave {found!r}"

    @promise("generate", needs=Capability.SEED)
    def test_a_seed_fixes_the_draw_whatever_else_is_in_the_batch(self, bench: EngineBench) -> None:
        """The same request gives the same completions alone, among others, and in another order; another seed gives others"""
        if not bench.can(Capability.SEED):
            pytest.skip(f"engine {bench.spec.name!r} does not declare 'seed': nothing asks for it, so nothing can be refused")
        sampling = SamplingParams(n=2, max_new_tokens=8)
        requests = requests_of(bench.prompts, logprobs=False)
        together = tokens(bench.engine.generate(requests, sampling))
        alone = [tokens(bench.engine.generate([r], sampling))[0] for r in reversed(requests)][::-1]
        assert together == alone, "a request's draw depends on what else is in the batch, although 'seed' is declared"
        others = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False, first_seed=5), sampling))
        assert together != others, "another seed gave the same draws: the seed of a request is not used"

    @promise("generate")
    def test_filters_narrow_the_draw(self, bench: EngineBench, record_property: Record) -> None:
        """`top_k` 1 and a tiny `top_p` are greedy, whatever the temperature; `min_p` near 1 is, too"""
        greedy = [[bench.greedy(bench.short)]]
        asked: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}]
        if self._declared(bench, Capability.MIN_P, record_property):
            asked.append({"min_p": 0.999999})
        for filters in asked:
            found = tokens(bench.engine.generate(requests_of([bench.short], logprobs=False), SamplingParams(max_new_tokens=8, **filters)))
            assert found == greedy, f"{filters} leaves the most likely token alone and drew {found[0][0]}, greedy is {greedy[0][0]}"

    @promise("generate")
    def test_draws_follow_the_tempered_distribution(self, bench: EngineBench) -> None:
        """First tokens of 600 draws at temperature 0.5 lie within five standard deviations of the distribution"""
        bench.sync(bench.sharpened())
        requests = requests_of([bench.short], logprobs=False)
        drawn = bench.engine.generate(requests, SamplingParams(temperature=0.5, n=600, max_new_tokens=1))[0]
        counts = torch.zeros(bench.judge.vocab_size, dtype=torch.float64)
        for completion in drawn.completions:
            counts[completion.token_ids[0]] += 1
        expected = bench.judge.distribution(bench.model, bench.short, temperature=0.5)
        # 5 standard deviations of a binomial share, and one draw for the rarest
        bound = 5 * (expected * (1 - expected) / 600).sqrt() + 1 / 600
        far = float(((counts / 600 - expected).abs() / bound).max())
        assert far <= 1, f"the share of one first token is {5 * far:.0f} standard deviations from its probability at temperature 0.5"

    # ---- why it ends ---------------------------------------------------------------------------------------------------------------------

    @promise("generate")
    def test_a_stop_token_ends_a_completion_and_stays_in_it(self, bench: EngineBench) -> None:
        """`stop_token_ids`: the completion ends with the stop token, for the reason `stop`"""
        prompt = bench.talkative()
        greedy = bench.greedy(prompt)
        stop = greedy[2]
        [output] = bench.engine.generate(requests_of([prompt], logprobs=False), replace(GREEDY, stop_token_ids=(stop,)))
        [completion] = output.completions
        found, expected = (list(completion.token_ids), completion.finish_reason), (greedy[: greedy.index(stop) + 1], "stop")
        assert found == expected, (
            f"with the stop token {stop} the completion is {found}, expected {expected}: tokens, then the finish reason"
        )

    @promise("generate")
    def test_the_end_of_sequence_token_ends_unless_it_is_ignored(self, bench: EngineBench) -> None:
        """The model's own end of sequence is the last token of what it ends; with `ignore_eos` it ends nothing"""
        requests = requests_of([bench.short], logprobs=False)
        sampling, end = SamplingParams(temperature=1.9, n=64, max_new_tokens=16), bench.judge.eos_id
        drawn = bench.engine.generate(requests, sampling)[0].completions
        ended = [list(c.token_ids) for c in drawn if c.finish_reason == "stop"]
        assert ended, "of 64 completions none ended with the end of sequence"
        assert all(t.index(end) == len(t) - 1 for t in ended if end in t), "a completion went on after its end of sequence"
        assert all(end in t for t in ended), f"finish reason 'stop' without the end of sequence {end} in the tokens: it has to stay in them"
        ignoring = bench.engine.generate(requests, replace(sampling, ignore_eos=True))[0].completions
        found = {(len(c.token_ids), c.finish_reason) for c in ignoring}
        assert found == {(16, "length")}, f"with ignore_eos completions end as {sorted(found)}, expected 16 tokens and 'length'"

    @promise("generate")
    def test_a_completion_cut_by_a_limit_says_length(self, bench: EngineBench) -> None:
        """`max_new_tokens`, or the end of the context: exactly so many tokens, finish reason `length`"""
        for prompt, limit, kept in ((bench.short, 5, 5), (bench.filling(MAX_MODEL_LEN - 3), 64, 3)):
            sampling = SamplingParams(max_new_tokens=limit, ignore_eos=True)
            [output] = bench.engine.generate(requests_of([prompt], logprobs=False), sampling)
            found = (len(output.completions[0].token_ids), output.completions[0].finish_reason)
            assert found == (kept, "length"), (
                f"a prompt of {len(prompt)} tokens with max_new_tokens={limit} in a context of {MAX_MODEL_LEN} ended with {found[0]} "
                f"tokens and finish reason {found[1]!r}; expected {kept} and 'length'"
            )

    @promise("generate", needs=Capability.MIN_NEW_TOKENS)
    def test_min_new_tokens_keeps_stop_tokens_away(self, bench: EngineBench, record_property: Record) -> None:
        """Before so many tokens no stop token is drawn"""
        if not self._declared(bench, Capability.MIN_NEW_TOKENS, record_property):
            return
        stop = bench.greedy(bench.short)[0]
        sampling = replace(GREEDY, stop_token_ids=(stop,), min_new_tokens=4)
        [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), sampling)
        found = list(output.completions[0].token_ids)
        assert len(found) >= 4 and stop not in found[:4], f"min_new_tokens=4 with the stop token {stop} gave {found}"

    @promise("generate", needs=Capability.STOP_STRINGS)
    def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(self, bench: EngineBench, record_property: Record) -> None:
        """`stop`: the token that completes the text is the last, finish reason `stop`"""
        if not self._declared(bench, Capability.STOP_STRINGS, record_property):
            return
        greedy = bench.greedy(bench.short)
        at = next(i for i, token in enumerate(greedy) if token > 2 and token not in greedy[:i])
        text = str(tiny_tokenizer().decode([greedy[at]]))
        [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), replace(GREEDY, stop=(text,)))
        found = (list(output.completions[0].token_ids), output.completions[0].finish_reason)
        assert found == (greedy[: at + 1], "stop"), (
            f"with the stop string {text!r} the completion is {found}, expected {greedy[: at + 1]}, 'stop'"
        )

    @promise("generate", needs=Capability.STOP_STRINGS)
    def test_special_tokens_are_text_for_stop_strings_only_where_that_is_asked(self, bench: EngineBench, record_property: Record) -> None:
        """A stop string that is a special token's text ends a completion with `skip_special_tokens` off, and only then"""
        if not self._declared(bench, Capability.STOP_STRINGS, record_property):
            return
        requests, end = requests_of([bench.short], logprobs=False), bench.judge.eos_id
        sampling = SamplingParams(temperature=1.9, n=64, max_new_tokens=16, ignore_eos=True, stop=(EOS,))
        unseen = {(len(c.token_ids), c.finish_reason) for c in bench.engine.generate(requests, sampling)[0].completions}
        assert unseen == {(16, "length")}, (
            f"the stop string {EOS!r} ended completions although special tokens are skipped: {sorted(unseen)}"
        )
        seen = bench.engine.generate(requests, replace(sampling, skip_special_tokens=False))[0].completions
        ended = [list(c.token_ids) for c in seen if c.finish_reason == "stop"]
        assert ended, f"the stop string {EOS!r} ended no completion although special tokens are text"
        assert all(t.index(end) == len(t) - 1 for t in ended), f"a completion went on after the stop string {EOS!r}"

    # ---- what is refused -----------------------------------------------------------------------------------------------------------------

    @promise("generate")
    @pytest.mark.parametrize("fault", ["no tokens", "outside the vocabulary", "below the vocabulary", "no room"])
    def test_a_bad_request_is_named_and_harms_nobody(self, bench: EngineBench, fault: str) -> None:
        """An empty prompt, an unknown token, no room for a completion: a ValueError with the request's id; the engine goes on"""
        size = bench.judge.vocab_size
        prompt: list[int] = {"no tokens": [], "outside the vocabulary": [3, size], "below the vocabulary": [3, -1]}.get(
            fault, [3] * MAX_MODEL_LEN
        )
        try:
            bench.engine.generate([replace(r, id=r.id + 4) for r in requests_of([bench.short, prompt], logprobs=False)], GREEDY)
        except ValueError as error:
            assert "request 5" in str(error), f"a prompt with {fault} is refused without the request's id, 5: {str(error)!r}"
        else:
            raise AssertionError(f"a prompt with {fault} was accepted")
        self._is(bench, EngineStatus.AWAKE, f"a request that was refused ({fault})")
        found = tokens(bench.engine.generate(requests_of([bench.short], logprobs=False), GREEDY))
        assert found == [[bench.greedy(bench.short)]], f"after a refused request the engine answers {found}"

    @promise("update_weights")
    @pytest.mark.parametrize("fault", ["a tensor is missing", "an unknown name", "another shape", "another dtype"])
    def test_weights_that_do_not_fit_are_refused_and_never_half_used(self, bench: EngineBench, fault: str) -> None:
        """A WeightSyncError that names the parameter; the old weights stay whole, or the engine is UNUSABLE and refuses to generate"""
        other = bench.models[1] if bench.model is not bench.models[1] else bench.models[2]
        try:
            bench.engine.update_weights(spoilt(weights_of(other), fault), version=bench.version + 1)
        except WeightSyncError as error:
            assert "down_proj" in str(error), (
                f"weights of which {fault} are refused without naming the parameter, a down_proj: {str(error)!r}"
            )
        else:
            bench.close()
            raise AssertionError(f"weights of which {fault} were accepted without a word")
        if bench.engine_as_it_is.status is EngineStatus.UNUSABLE:
            with pytest.raises(EngineStateError):
                bench.engine_as_it_is.generate(requests_of([bench.short], logprobs=False), GREEDY)
            return
        self._is(bench, EngineStatus.AWAKE, f"weights that were refused ({fault})")
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY)
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert tokens(outputs) == expected, (
            f"after weights were refused ({fault}) the engine samples from half of them, and says it is awake"
        )
        versions = {c.weight_version for o in outputs for c in o.completions}
        assert versions == {bench.version}, f"after weights were refused ({fault}) completions carry the version {versions}"

    @promise("update_weights")
    def test_buckets_are_read_once_and_may_be_used_again_by_the_sender(self, bench: EngineBench) -> None:
        """A bucket's tensors may be overwritten as soon as the next bucket is asked for"""

        def overwritten() -> Iterator[WeightBucket]:
            for bucket in weights_of(bench.models[2]):
                sent = [replace(w, tensor=w.tensor.clone()) for w in bucket]
                yield sent
                for weight in sent:
                    weight.tensor.fill_(float("nan"))

        bench.engine.update_weights(overwritten(), version=bench.version + 1)
        bench.engine.reset_cache()
        bench.version, bench.model = bench.version + 1, bench.models[2]
        found = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY))
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert found == expected, (
            "the engine keeps the sender's tensors instead of copies: what is written into them later is in its weights"
        )

    @promise("update_weights")
    def test_every_tensor_of_a_sync_arrives(self, bench: EngineBench) -> None:
        """One parameter of another value changes what the engine answers or holds: fused and tied ones, each by itself"""
        bench.sync(bench.models[0])
        for ending in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "embed_tokens.weight"):
            changed = bench.changed_in(ending)
            bench.sync(changed)
            found = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY))
            expected = [[bench.greedy(p)] for p in bench.prompts]
            assert found == expected, f"a sync that changes only {ending} does not change what the engine samples from: half of a module"

    @promise("weight_shapes")
    def test_needed_weights_are_named_with_their_shapes(self, bench: EngineBench) -> None:
        """Names and full shapes of what `update_weights` needs, as the folder has them; or nothing where that is not known"""
        found = dict(bench.engine.weight_shapes())
        known = {name: tuple(w.tensor.shape) for bucket in weights_of(bench.model) for w in bucket for name in w.names}
        wrong = [name for name, shape in found.items() if known.get(name) != tuple(shape)]
        assert not wrong, f"weight_shapes has {wrong[0]} as {found[wrong[0]]}, the model has {known.get(wrong[0])}"
        firsts = [w.names for bucket in weights_of(bench.model) for w in bucket]
        lacking = [names[0] for names in firsts if found and not set(names) & found.keys()]
        assert not lacking, f"weight_shapes lacks {', '.join(lacking[:3])}: a sync without it would not be stopped"

    @promise("weight_sums", needs=Capability.WEIGHT_SUMS)
    def test_sums_are_of_the_tensors_that_it_holds(self, bench: EngineBench) -> None:
        """`weight_sums`: of every tensor, as it was sent in the last sync; without the capability a CapabilityError"""
        if not bench.can(Capability.WEIGHT_SUMS):
            with pytest.raises(CapabilityError):
                bench.engine.weight_sums()
            return
        for model in (bench.models[1], bench.models[2]):
            bench.sync(model)
            held = bench.engine.weight_sums()
            sent = {name: WeightSum(*tensor_sum(w.tensor)) for bucket in weights_of(model) for w in bucket for name in w.names}
            wrong = [
                " + ".join(names)
                for names, value in held.items()
                if not value.same_as(sum((sent[n] for n in _once(names, bench)), start=WeightSum(0, 0)))
            ]
            assert held and not wrong, (
                f"the sums of {', '.join(wrong[:3]) or 'nothing'} are not those of what was synced ({len(held)} tensors)"
            )

    @promise("capabilities")
    @pytest.mark.parametrize("capability", sorted({**SETTINGS_THAT_ASK, **SAMPLING_THAT_ASKS}))
    def test_what_is_not_declared_is_refused(self, bench: EngineBench, record_property: Record, capability: Capability) -> None:
        """Before an engine is started where a setting asks for it, before it is called where a request does"""
        if bench.can(capability):
            return
        self._refused(bench, capability)
        record_property("refused", str(capability))

    # ---- states --------------------------------------------------------------------------------------------------------------------------

    @promise("sleep")
    @pytest.mark.parametrize("level", [1, 2])
    def test_asleep_it_refuses_and_awake_it_is_what_it_was(self, bench: EngineBench, record_property: Record, level: int) -> None:
        """Asleep, `generate` and `update_weights` are refused; awake again it has its weights (level 2: of the next sync)"""
        engine, capability = bench.engine, Capability.SLEEP_1 if level == 1 else Capability.SLEEP_2
        if not bench.can(capability):
            try:
                engine.sleep(level)
            except LightRFTError:
                self._is(bench, EngineStatus.AWAKE, "a sleep that was refused")
                record_property("refused", str(capability))
                return
            bench.close()
            raise AssertionError(f"sleep({level}) was silently accepted by an engine that does not declare {str(capability)!r}")
        for _ in range(2):
            engine.sleep(level)
            self._is(bench, EngineStatus.ASLEEP, f"sleep({level})")
        self._state_error(bench, "generate", lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY), "asleep")
        self._state_error(
            bench, "update_weights", lambda: engine.update_weights(weights_of(bench.models[1]), version=bench.version + 1), "asleep"
        )
        self._is(bench, EngineStatus.ASLEEP, "calls that were refused while asleep")
        engine.wake_up(ALL_TAGS[:1])
        self._is(bench, EngineStatus.WEIGHTS_ONLY, "wake_up(weights)")
        self._state_error(
            bench, "generate", lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY), "without its cache"
        )
        if level == 2:
            self._after_level_2(bench)
        for _ in range(2):
            engine.wake_up(ALL_TAGS)
            self._is(bench, EngineStatus.AWAKE, "wake_up(weights, kv_cache)")
        found = tokens(engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY))
        expected = [[bench.greedy(p)] for p in bench.prompts]
        assert found == expected, (
            f"after sleep({level}) and wake_up the engine does not have the weights that it had: it answers {found[0]}"
        )

    @promise("update_weights", needs=Capability.SLEEP_1)
    def test_weights_may_change_before_the_cache_is_back(self, bench: EngineBench, record_property: Record) -> None:
        """With its weights awake alone it takes a sync; then the cache comes back, and the new weights answer"""
        level = next((n for n, c in ((1, Capability.SLEEP_1), (2, Capability.SLEEP_2)) if bench.can(c)), None)
        if level is None:
            record_property("refused", str(Capability.SLEEP_1))
            return
        bench.engine.sleep(level)
        bench.engine.wake_up(ALL_TAGS[:1])
        bench.sync(bench.models[2] if bench.model is not bench.models[2] else bench.models[1])
        self._is(bench, EngineStatus.WEIGHTS_ONLY, "a sync with the weights awake alone")
        bench.engine.wake_up(ALL_TAGS)
        again = SamplingParams(temperature=0.0, max_new_tokens=8)
        found = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False), again))
        assert found == [[bench.greedy(p)] for p in bench.prompts], "a sync while the cache was away was lost when it came back"

    @promise("shutdown")
    def test_after_shutdown_every_call_is_refused(self, bench: EngineBench) -> None:
        """UNUSABLE, twice over without harm; every other call is an EngineStateError"""
        engine = bench.engine
        engine.shutdown()
        engine.shutdown()
        self._is(bench, EngineStatus.UNUSABLE, "shutdown")
        calls: dict[str, Callable[[], object]] = {
            "generate": lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY),
            "update_weights": lambda: engine.update_weights([], version=1),
            "reset_cache": engine.reset_cache,
            "sleep": lambda: engine.sleep(1),
            "wake_up": lambda: engine.wake_up(ALL_TAGS),
        }
        for name, call in calls.items():
            if name != "sleep" or bench.can(Capability.SLEEP_1):
                self._state_error(bench, name, call, "shut down")

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _after_level_2(self, bench: EngineBench) -> None:
        engine = bench.engine
        engine.wake_up(ALL_TAGS)
        self._state_error(
            bench,
            "generate",
            lambda: engine.generate(requests_of([bench.short], logprobs=False), GREEDY),
            "without weights (level 2 dropped them)",
        )
        bench.sync(bench.models[1])

    def _is(self, bench: EngineBench, status: EngineStatus, after: str) -> None:
        found = bench.engine_as_it_is.status
        if found is not status:
            bench.close()
        assert found is status, f"after {after} the status is {str(found)!r}, expected {str(status)!r}"

    def _state_error(self, bench: EngineBench, name: str, call: Callable[[], object], when: str) -> None:
        try:
            call()
        except EngineStateError:
            return
        except Exception as error:
            bench.close()
            raise AssertionError(
                f"{name} while the engine is {when} raised {type(error).__name__}: {error}; expected EngineStateError"
            ) from error
        bench.close()
        raise AssertionError(f"{name} while the engine is {when} was accepted without a word; expected EngineStateError")

    def _declared(self, bench: EngineBench, capability: Capability, record: Record) -> bool:
        """Whether it is; where not, that it is refused is asked here."""
        if bench.can(capability):
            return True
        self._refused(bench, capability)
        record("refused", str(capability))
        return False

    def _refused(self, bench: EngineBench, capability: Capability) -> None:
        settings, sampling = SETTINGS_THAT_ASK.get(capability), SAMPLING_THAT_ASKS.get(capability, {})
        try:
            if settings is not None:
                if capability in bench.spec.capabilities:
                    pytest.skip(f"engine {bench.spec.name!r} has {str(capability)!r} on CUDA only, which is checked when it starts")
                config = make_config({"engine_type": bench.spec.name, **settings})
                check_engine(config, registry=bench.registry, world_size=2)
            else:
                params = SamplingParams(max_new_tokens=4, **sampling)
                bench.through_controller(params, logprobs=capability is Capability.LOGPROBS)
        except LightRFTError as error:
            assert str(capability) in str(error), f"the refusal does not name the capability {str(capability)!r}: {str(error)!r}"
            return
        raise AssertionError(f"{settings or sampling or 'logprobs'} was accepted by an engine that does not declare {str(capability)!r}")


def _once(names: Collection[str], bench: EngineBench) -> list[str]:
    """One name of each tensor among these: names of a tied one count once."""
    groups = [w.names for bucket in weights_of(bench.model) for w in bucket]
    return [next(n for n in names if n in group) for group in groups if set(names) & set(group)]


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
