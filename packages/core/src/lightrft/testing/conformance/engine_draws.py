"""Requirements of what an engine draws: the right tokens, of the right weights, in the right order, with their log-probs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from lightrft.engine.progress import unread, unwatched
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit, Record, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, MAX_BATCH_SIZE, EngineBench, requests_of
from lightrft.types import FinishReason, RequestOutput, SamplingParams

LENGTHS = (5, 0, 33, 33, 2, 150, 14, 1)
"""By which prompts are longer, in turn: neither rising nor falling, nor all the same; neighbours of one length among them."""

FP32_ERROR = 1e-5
"""Of log-probs against transformers on the CPU."""


class Draws(EngineKit, kit=True):
    """What is drawn."""

    @requirement("generate")
    def test_greedy_tokens_are_those_of_the_model_before_and_after_each_sync(self, bench: EngineBench) -> None:
        """Version 0 is the folder's weights; after `update_weights` no token comes from older ones"""
        bench.with_the_folders_weights()
        for index in (None, 1, 2, 0):
            if index is not None:
                bench.sync(bench.models[index])
            for prompt, output in zip(
                bench.prompts, bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY), strict=True
            ):
                found, expected = list(output.completions[0].token_ids), bench.greedy(prompt)
                old = "; these are those of the weights before: stale weights" if found == bench.greedy_before(prompt) else ""
                assert found == expected, f"after sync {bench.version} greedy tokens are {found}, of the synced weights {expected}{old}"

    @requirement("generate", needs=Capability.LOGPROBS)
    def test_logprobs_are_untempered_unfiltered_and_only_where_asked(self, bench: EngineBench, record_property: Record) -> None:
        """Natural logs of the model's own distribution, one for each token, whatever the temperature, the filters and n"""
        if not self._declared(bench, Capability.LOGPROBS, record_property):
            return
        asked = [True, False, True]
        ways: list[dict[str, Any]] = [{"n": 2, "temperature": 0.7, "top_p": 0.9}, {"n": 2, "temperature": 0.0}, {"n": 3, "top_k": 3}]
        ways += [{"n": 1}, {"n": 2 * MAX_BATCH_SIZE + 1, "temperature": 1.3}]
        ways += [{"n": 2, "min_new_tokens": 4, "stop_token_ids": range(3, 9)}] if bench.can(Capability.MIN_NEW_TOKENS) else []
        for drawn in ways:
            sampling = SamplingParams.coerce({"max_new_tokens": 6, **drawn})
            outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=asked), sampling)
            given = [[c.logprobs is not None for c in o.completions] for o in outputs]
            expected = [[a] * sampling.n for a in asked]
            assert given == expected, f"log-probs were asked for prompts {asked}, completions have them: {given}"
            for output in outputs:
                for completion in output.completions:
                    if completion.logprobs is not None:
                        bench.judge_logprobs(output, completion, sampling, bound=FP32_ERROR)

    @requirement("generate")
    def test_completions_hold_plain_numbers(self, bench: EngineBench) -> None:
        """Token ids and versions are ints, log-probs floats, finish reasons the contract's: no tensors, no numbers of another library"""
        logprobs = bench.can(Capability.LOGPROBS)
        for output in bench.engine.generate(requests_of(bench.prompts, logprobs=logprobs), GREEDY):
            for completion in output.completions:
                numbers = [*output.prompt_token_ids, *completion.token_ids, completion.weight_version]
                strange = sorted({type(n).__name__ for n in numbers if type(n) is not int})
                strange += sorted({type(p).__name__ for p in completion.logprobs or () if type(p) is not float})
                assert not strange, f"a completion holds {', '.join(strange)}: ids and versions are plain ints, log-probs plain floats"
                assert completion.finish_reason in get_args(FinishReason), (
                    f"the finish reason is {completion.finish_reason!r}; possible: {', '.join(get_args(FinishReason))}"
                )

    @requirement("generate")
    def test_what_it_is_given_stays_as_it_was(self, bench: EngineBench) -> None:
        """Requests, their prompts and the sampling parameters are the caller's: nothing is written into them"""
        requests = requests_of(bench.prompts, logprobs=False)
        sampling = SamplingParams(n=2, max_new_tokens=4)
        before = copy.deepcopy((requests, sampling))
        outputs = bench.engine.generate(requests, sampling)
        wrong = [r.id for r, kept in zip(requests, before[0], strict=False) if list(r.prompt_token_ids) != list(kept.prompt_token_ids)]
        assert not wrong, f"generate wrote into the prompts of the requests {wrong}: they are the caller's"
        assert (requests, sampling) == before, "generate wrote into the requests or the sampling parameters that it was given"
        told = [list(o.prompt_token_ids) for o in outputs]
        assert told == [list(r.prompt_token_ids) for r in before[0]], "an output holds another prompt than its request had"

    @requirement("read_sampling")
    def test_sampling_may_come_as_a_mapping_and_unknown_names_are_refused(self, bench: EngineBench) -> None:
        """Our dataclass as it is, or a mapping of its fields; an unknown name or a value without meaning is a ValueError that names it"""
        fields = {"temperature": 0.5, "n": 2, "max_new_tokens": 4, "top_k": 3}
        expected = SamplingParams(**fields)  # type: ignore[arg-type]  # mypy widens the values
        for given in (fields, expected):
            found = bench.engine.read_sampling(given)
            assert found == expected, f"read_sampling of {given} gives {found}"
        for name, value in (("temprature", 0.5), ("top_p", 0.0)):
            try:
                read = bench.engine.read_sampling({name: value})
            except ValueError as error:
                assert name in str(error), f"read_sampling of {name}={value} is refused without the name: {str(error)!r}"
                continue
            raise AssertionError(f"read_sampling took {name}={value} without a word: {read}")

    @requirement("generate")
    def test_outputs_answer_the_requests_in_order(self, bench: EngineBench) -> None:
        """One output for each request, in the order of the requests, with its id and its prompt, and the tokens that belong to it"""
        prompts = [[3 + i % 11, 4, 5 + i // 11, *bench.filling(LENGTHS[i % len(LENGTHS)])] for i in range(12)]
        prompts += [prompts[2], prompts[7]]  # one that comes twice is answered twice
        requests = [replace(r, id=70_007 + 3 * r.id) for r in requests_of(prompts, logprobs=False)]
        outputs = bench.engine.generate(requests, GREEDY)
        found = [(o.id, list(o.prompt_token_ids)) for o in outputs]
        expected = [(r.id, list(r.prompt_token_ids)) for r in requests]
        assert found == expected, (
            f"outputs are of the requests {[i for i, _ in found]}, asked were {[i for i, _ in expected]} in that order"
        )
        mixed = [o.id for o in outputs if list(o.completions[0].token_ids) != bench.greedy(o.prompt_token_ids)]
        assert not mixed, f"the completions of requests {mixed} answer other prompts: outputs were reordered"

    @requirement("generate")
    def test_any_token_may_stand_in_a_prompt(self, bench: EngineBench) -> None:
        """The end of sequence and token 0, at the start, inside and at the end of a prompt, are tokens like any other"""
        end = bench.judge.eos_id
        prompts = [[*([token] if at == 0 else []), 5, 6, *([token] if at == 1 else []), 7, 8, 9, *([token] if at == 2 else [])]
                   for token in (end, 0) for at in range(3)]  # fmt: skip
        outputs = bench.engine.generate(requests_of([*prompts, bench.long], logprobs=False), GREEDY)
        for prompt, [found] in zip(prompts, tokens(outputs), strict=False):
            expected = bench.greedy(prompt)
            assert found == expected, (
                f"the prompt {prompt} is answered by {found}, expected {expected}: the end of sequence ({end}) or token 0 in it is taken "
                "for padding, or for its end"
            )

    @requirement("generate")
    def test_n_completions_belong_to_their_prompt_and_differ(self, bench: EngineBench) -> None:
        """`sampling.n` completions each, different draws, in the order of their sample index; none of another prompt"""
        requests = requests_of(bench.prompts, logprobs=False)
        sampling = SamplingParams(n=4, max_new_tokens=6)
        outputs = bench.engine.generate(requests, sampling)
        numbers = [len(o.completions) for o in outputs]
        assert numbers == [4] * len(requests), f"asked were n=4 completions for each prompt, found {numbers}"
        assert all(len({tuple(t) for t in group}) > 1 for group in tokens(outputs)), (
            "the n completions of a prompt are all identical: one draw, copied"
        )
        if bench.can(Capability.SEED):
            alone = [tokens(bench.engine.generate([r], sampling))[0] for r in requests]
            assert [sorted(g) for g in tokens(outputs)] == [sorted(g) for g in alone], (
                "samples of one prompt stand in the group of another: interleaved"
            )
            assert tokens(outputs) == alone, "the completions of a prompt stand in another order when other prompts are in the batch"

    @requirement("generate")
    def test_greedy_completions_of_one_prompt_are_identical(self, bench: EngineBench) -> None:
        """Temperature 0 with n > 1 gives n times the same"""
        [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), replace(GREEDY, n=3))
        expected = [bench.greedy(bench.short)] * 3
        assert tokens([output]) == [expected], f"three greedy completions are {tokens([output])[0]}, expected three times {expected[0]}"

    @requirement("generate")
    def test_completions_carry_the_version_of_their_weights(self, bench: EngineBench) -> None:
        """The version is that of the last `update_weights`, whatever its number"""
        for later in (41, -20):  # a run that goes on from a checkpoint may count from less
            bench.sync(bench.models[1], version=bench.version + later)
            outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), GREEDY)
            found = {c.weight_version for o in outputs for c in o.completions}
            assert found == {bench.version}, f"completions carry the weight version {sorted(found)} after a sync as version {bench.version}"

    @requirement("report")
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

    @requirement("finished")
    def test_it_hands_over_what_it_returns_each_once_or_nothing(self, bench: EngineBench) -> None:
        """Outputs handed over while it generates are those that it returns, each once; or none are"""
        early: list[RequestOutput] = []
        bench.engine.finished = early.append
        outputs = bench.engine.generate(requests_of(bench.prompts, logprobs=False), SamplingParams(n=3, max_new_tokens=6))
        bench.engine.finished = unread
        handed = sorted(early, key=lambda o: o.id)
        assert handed in ([], outputs), f"handed over early: {[o.id for o in handed]}, returned: {[o.id for o in outputs]}"

    @requirement("generate")
    def test_no_requests_give_no_outputs(self, bench: EngineBench) -> None:
        """An empty list returns an empty list"""
        found = bench.engine.generate([], GREEDY)
        assert found == [], f"no requests gave {found!r}"

    @requirement("generate", needs=Capability.SEED)
    def test_a_seed_fixes_the_draw_whatever_else_is_in_the_batch(self, bench: EngineBench) -> None:
        """The same request gives the same completions alone, among others, and in another order; another seed gives others"""
        if not bench.can(Capability.SEED):
            pytest.skip(f"engine {bench.spec.name!r} does not declare 'seed': nothing asks for it, so nothing can be refused")
        sampling = SamplingParams(n=2, max_new_tokens=8)
        requests = requests_of(bench.prompts, logprobs=False)
        together = tokens(bench.engine.generate(requests, sampling))
        alone = [tokens(bench.engine.generate([r], sampling))[0] for r in reversed(requests)][::-1]
        assert together == alone, "a request's draw depends on what else is in the batch, although 'seed' is declared"
        for other in (5, 200, 100 + 2**20):
            others = tokens(bench.engine.generate(requests_of(bench.prompts, logprobs=False, first_seed=other), sampling))
            assert together != others, f"the seeds from 100 and from {other} on gave the same draws: the seed of a request is not used"
        for seed in (0, 2**62 - 1):
            request = replace(requests[0], seed=seed)
            first, again = (tokens(bench.engine.generate([request], sampling)) for _ in range(2))
            assert first == again, f"a request of seed {seed} drew {first[0]}, and then {again[0]}: it is taken for no seed"

    @requirement("generate")
    def test_filters_narrow_the_draw(self, bench: EngineBench, record_property: Record) -> None:
        """`top_k` 1 and a tiny `top_p` are greedy, whatever the temperature; `min_p` near 1 is, too"""
        greedy = [[bench.greedy(bench.short)]]
        asked: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}]
        if self._declared(bench, Capability.MIN_P, record_property):
            asked.append({"min_p": 0.999999})
        for filters in asked:
            found = tokens(bench.engine.generate(requests_of([bench.short], logprobs=False), SamplingParams(max_new_tokens=8, **filters)))
            assert found == greedy, f"{filters} leaves the most likely token alone and drew {found[0][0]}, greedy is {greedy[0][0]}"

    @requirement("generate")
    def test_filters_keep_as_many_tokens_as_they_say(self, bench: EngineBench) -> None:
        """After the temperature `top_k` keeps the k likeliest tokens, `top_p` the fewest that make up p, `min_p` those near the first"""
        bench.sync(bench.sharpened())
        ways: list[dict[str, Any]] = [{"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.9, "temperature": 0.5}]
        ways += [{"min_p": 0.2}] if bench.can(Capability.MIN_P) else []
        for way in ways:
            what, sampling = " and ".join(f"{name}={value}" for name, value in way.items()), SamplingParams(n=400, max_new_tokens=1, **way)
            heated = bench.judge.distribution(bench.model, bench.short, temperature=sampling.temperature)
            fractions, number = heated.sort(descending=True).values, num_kept(heated, sampling)
            [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), sampling)
            found = {c.token_ids[0] for c in output.completions}
            least = fractions[number - 1] - 1e-9
            strange = [t for t in found if heated[t] < least]
            sure = int((fractions[:number] / fractions[:number].sum() > 0.05).sum())
            assert not strange and len(found) <= number, f"{what} keeps {number} tokens; 400 draws are of {len(found)}: {sorted(found)}"
            assert len(found) >= sure, (
                f"{what} keeps {number} tokens, {sure} of them with a fraction over 0.05; 400 draws are of {sorted(found)}"
            )

    @requirement("generate")
    def test_draws_follow_the_tempered_distribution(self, bench: EngineBench) -> None:
        """First tokens of 600 draws, at temperatures 0.5 and 1.5, lie within five standard deviations of the distribution"""
        bench.sync(bench.sharpened())
        requests = requests_of([bench.short], logprobs=False)
        for heat in (0.5, 1.5):
            drawn = bench.engine.generate(requests, SamplingParams(temperature=heat, n=600, max_new_tokens=1))[0].completions
            assert len(drawn) == 600, f"asked were n=600 completions, found {len(drawn)}"
            counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn]), minlength=bench.judge.vocab_size).double()
            expected = bench.judge.distribution(bench.model, bench.short, temperature=heat)
            # 5 standard deviations of a binomial fraction, and one draw for the rarest
            bound = 5 * (expected * (1 - expected) / 600).sqrt() + 1 / 600
            far = float(((counts / 600 - expected).abs() / bound).max())
            assert far <= 1, (
                f"the fraction of one first token is {5 * far:.0f} standard deviations from its probability at temperature {heat}"
            )


def num_kept(distribution: torch.Tensor, sampling: SamplingParams) -> int:
    """How many of the most likely tokens the filters of `sampling` keep of a tempered distribution [V]."""
    fractions = distribution.sort(descending=True).values
    if sampling.top_k:
        fractions = fractions[: sampling.top_k] / fractions[: sampling.top_k].sum()
    number = int((fractions.cumsum(0) - fractions < sampling.top_p - 1e-9).sum())
    return min(number, int((fractions >= sampling.min_p * fractions[0]).sum()))
