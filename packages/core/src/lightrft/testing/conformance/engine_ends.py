"""Requirements of where a completion ends, for which reason, and of what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import SAMPLING_THAT_ASKS, SETTINGS_THAT_ASK, EngineKit, Record, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, MAX_MODEL_LEN, EngineBench, requests_of
from lightrft.testing.tiny import ALPHABET, EOS, tiny_tokenizer
from lightrft.types import EngineStatus, SamplingParams


class Ends(EngineKit, kit=True):
    """Why a completion ends, and which are never begun."""

    @requirement("generate")
    def test_a_stop_token_ends_a_completion_and_stays_in_it(self, bench: EngineBench) -> None:
        """`stop_token_ids`: the completion ends with the stop token, for the reason `stop`"""
        prompt = bench.talkative()
        greedy = bench.greedy(prompt)
        stop, absent = greedy[2], next(token for token in range(3, bench.judge.vocab_size) if token not in greedy)
        [output] = bench.engine.generate(requests_of([prompt], logprobs=False), replace(GREEDY, stop_token_ids=(absent, stop)))
        [completion] = output.completions
        found, expected = (list(completion.token_ids), completion.finish_reason), (greedy[: greedy.index(stop) + 1], "stop")
        assert found == expected, (
            f"with the stop token {stop} the completion is {found}, expected {expected}: tokens, then the finish reason"
        )

    @requirement("generate")
    def test_the_end_of_sequence_token_ends_unless_it_is_ignored(self, bench: EngineBench) -> None:
        """The model's own end of sequence is the last token of what it ends; with `ignore_eos` it ends nothing"""
        self._flat(bench)
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

    @requirement("generate")
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

    @requirement("generate", needs=Capability.MIN_NEW_TOKENS)
    def test_min_new_tokens_keeps_stop_tokens_away(self, bench: EngineBench, record_property: Record) -> None:
        """Before so many tokens no stop token is drawn"""
        if not self._declared(bench, Capability.MIN_NEW_TOKENS, record_property):
            return
        self._flat(bench)
        stop = bench.greedy(bench.short)[0]
        sampling = replace(GREEDY, stop_token_ids=(stop,), min_new_tokens=4)
        [output] = bench.engine.generate(requests_of([bench.short], logprobs=False), sampling)
        found = list(output.completions[0].token_ids)
        assert len(found) >= 4 and stop not in found[:4], f"min_new_tokens=4 with the stop token {stop} gave {found}"
        sampling = SamplingParams(temperature=1.9, n=64, max_new_tokens=12, min_new_tokens=8)
        drawn = bench.engine.generate(requests_of([bench.short], logprobs=False), sampling)[0].completions
        early = [list(c.token_ids) for c in drawn if len(c.token_ids) < 8 or bench.judge.eos_id in list(c.token_ids)[:8]]
        assert not early, f"min_new_tokens=8 and the end of sequence {bench.judge.eos_id} before: {early[0]}"

    @requirement("generate", needs=Capability.STOP_STRINGS)
    def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(self, bench: EngineBench, record_property: Record) -> None:
        """`stop`: the token that completes the text is the last, finish reason `stop`"""
        if not self._declared(bench, Capability.STOP_STRINGS, record_property):
            return
        tokenizer, letters = tiny_tokenizer(), range(3, 3 + len(ALPHABET))
        prompt = next(p for p in bench.many_prompts() if all(token in letters for token in bench.greedy(p)[:4]))
        greedy = bench.greedy(prompt)
        for length in (1, 2):  # a text of one token, and one that lies over two
            text = str(tokenizer.decode(greedy[2 : 2 + length]))
            end = next(i for i in range(1, len(greedy) + 1) if text in str(tokenizer.decode(greedy[:i], skip_special_tokens=True)))
            [output] = bench.engine.generate(requests_of([prompt], logprobs=False), replace(GREEDY, stop=("no such text", text)))
            found = (list(output.completions[0].token_ids), output.completions[0].finish_reason)
            assert found == (greedy[:end], "stop"), (
                f"with the stop string {text!r} the completion is {found}, expected {greedy[:end]}, 'stop'"
            )

    @requirement("generate", needs=Capability.STOP_STRINGS)
    def test_a_stop_string_ends_each_completion_of_a_batch(self, bench: EngineBench, record_property: Record) -> None:
        """Of 12 prompts and both samples of each: some end with the text, others never hold it"""
        if not self._declared(bench, Capability.STOP_STRINGS, record_property):
            return
        tokenizer, prompts = tiny_tokenizer(), list(bench.many_prompts())[:12]
        greedy = [bench.greedy(prompt) for prompt in prompts]
        shown = [[str(tokenizer.decode(g[:i], skip_special_tokens=True)) for i in range(len(g) + 1)] for g in greedy]
        text = next(t for answer in shown for t in answer[-1][1:] if sum(t in other[-1] for other in shown) in range(2, 11))
        ends = [next((i for i, before in enumerate(answer) if text in before), len(answer) - 1) for answer in shown]
        outputs = bench.engine.generate(requests_of(prompts, logprobs=False), replace(GREEDY, n=2, stop=(text,)))
        for prompt, whole, end, output in zip(prompts, greedy, ends, outputs, strict=True):
            found = [list(c.token_ids) for c in output.completions]
            assert found == [whole[:end]] * 2, (
                f"with the stop string {text!r} the completions of {prompt} in a batch of {len(prompts)} prompts are {found}, expected "
                f"twice {whole[:end]}"
            )

    @requirement("generate", needs=Capability.STOP_STRINGS)
    def test_special_tokens_are_text_for_stop_strings_only_where_that_is_asked(self, bench: EngineBench, record_property: Record) -> None:
        """A stop string that is a special token's text ends a completion with `skip_special_tokens` off, and only then"""
        if not self._declared(bench, Capability.STOP_STRINGS, record_property):
            return
        self._flat(bench)
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

    @requirement("generate")
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

    @requirement("capabilities")
    @pytest.mark.parametrize("capability", sorted({**SETTINGS_THAT_ASK, **SAMPLING_THAT_ASKS}))
    def test_what_is_not_declared_is_refused(self, bench: EngineBench, record_property: Record, capability: Capability) -> None:
        """Before an engine is started where a setting asks for it, before it is called where a request does"""
        if bench.can(capability):
            return
        self._refused(bench, capability)
        record_property("refused", str(capability))

    def _flat(self, bench: EngineBench) -> None:
        """A fresh model, of which each token comes up in a few draws; one that a test before this sharpened may never end."""
        bench.sync(bench.models[1])
