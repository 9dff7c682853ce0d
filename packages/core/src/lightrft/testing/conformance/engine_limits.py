"""Every end at every limit: a completion says `stop` where a stop ended it, be it at the last token allowed, and `length` nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, MAX_MODEL_LEN, EngineBench, requests_of
from lightrft.testing.tiny import ALPHABET, tiny_tokenizer
from lightrft.types import Completion, SamplingParams

Case = tuple[str, list[int], SamplingParams, list[int], str]
"""What is asked in words, the prompt, the sampling, the tokens that have to come and the finish reason."""


class Limits(EngineKit, kit=True):
    """Where an end and a limit meet."""

    @requirement("generate")
    def test_a_stop_token_at_every_limit(self, bench: EngineBench) -> None:
        """`stop_token_ids` one before, at and one after the last token that `max_new_tokens` or the context allows, `ignore_eos` or not"""
        prompt, greedy = bench.answering(_has_a_new_token)
        _ask(bench, [*_around(prompt, greedy), *_in_the_context(bench)])

    @requirement("generate")
    def test_the_end_of_sequence_at_every_limit(self, bench: EngineBench) -> None:
        """The model's own end one before, at and one after the last token allowed; with `ignore_eos` it is a token like any other"""
        prompt, answer = _ending(bench)
        end = len(answer)
        cases: list[Case] = [
            (f"its end as token {end}, max_new_tokens={end - 1}", prompt, replace(GREEDY, max_new_tokens=end - 1), answer[:-1], "length"),
            (f"its end as token {end}, the last allowed", prompt, replace(GREEDY, max_new_tokens=end), answer, "stop"),
            (f"its end as token {end}, max_new_tokens={end + 1}", prompt, replace(GREEDY, max_new_tokens=end + 1), answer, "stop"),
            (
                f"its end as token {end}, the last allowed, with ignore_eos",
                prompt,
                replace(GREEDY, max_new_tokens=end, ignore_eos=True),
                answer,
                "length",
            ),
        ]
        _ask(bench, cases)

    @requirement("generate", needs=Capability.MIN_NEW_TOKENS)
    def test_a_stop_token_right_after_min_new_tokens(self, bench: EngineBench) -> None:
        """With `min_new_tokens` K the token after the first K may be a stop token, also where it is the last one allowed"""
        if not bench.can(Capability.MIN_NEW_TOKENS):
            return
        prompt, greedy = bench.answering(_has_a_new_token)
        at = _new_token(greedy)
        sampling = replace(GREEDY, stop_token_ids=(greedy[at],), min_new_tokens=at, max_new_tokens=at + 1)
        _ask(
            bench,
            [(f"min_new_tokens={at} and a stop token as token {at + 1}, the last allowed", prompt, sampling, greedy[: at + 1], "stop")],
        )

    @requirement("generate", needs=Capability.STOP_STRINGS)
    def test_a_stop_string_at_every_limit(self, bench: EngineBench) -> None:
        """A text that ends with, or one token after, the last token allowed; one of which only a part came, or the prompt's, is none"""
        if bench.can(Capability.STOP_STRINGS):
            _ask(bench, list(_texts(bench)))

    @requirement("generate")
    def test_drawn_completions_say_why_they_ended(self, bench: EngineBench) -> None:
        """At limits of 1, 2, 3 and 12 tokens: `stop` where the last token is a stop, else `length` with exactly so many tokens"""
        bench.sync(bench.models[1])
        for limit in (1, 2, 3, 12):
            sampling = SamplingParams(temperature=1.9, n=200, max_new_tokens=limit)
            [output] = bench.engine.generate(requests_of([bench.short], logprobs=False, first_seed=limit), sampling)
            problems = [p for c in output.completions if (p := end_problem(c, bench.short, sampling, eos_id=bench.judge.eos_id))]
            assert not problems, f"max_new_tokens={limit}: {problems[0]}"


def end_problem(completion: Completion, prompt: Sequence[int], sampling: SamplingParams, *, eos_id: int) -> str:
    """Why tokens and finish reason do not fit each other, in words; nothing where they do. For draws without stop strings."""
    tokens, reason = list(completion.token_ids), completion.finish_reason
    stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (eos_id,))}
    room = min(sampling.max_new_tokens, MAX_MODEL_LEN - len(prompt))
    if not 1 <= len(tokens) <= room:
        return f"a completion has {len(tokens)} tokens, 1 to {room} were allowed"
    if stops & set(tokens[:-1]):
        return f"the completion {tokens} goes on after a stop token ({sorted(stops & set(tokens[:-1]))})"
    if tokens[-1] in stops and reason != "stop":
        where = f"the stop token {tokens[-1]}, token {len(tokens)} of {room}"
        return f"the completion {tokens} ends with {where}, and says {reason!r}: expected 'stop'"
    if tokens[-1] not in stops and (reason, len(tokens)) != ("length", room):
        where = f"no stop token, {len(tokens)} of {room} tokens"
        return f"the completion {tokens} has {where}, and says {reason!r}: expected {room} and 'length'"
    return ""


def _ask(bench: EngineBench, cases: Sequence[Case]) -> None:
    for what, prompt, sampling, tokens, reason in cases:
        [output] = bench.engine.generate(requests_of([prompt], logprobs=False), sampling)
        found = (list(output.completions[0].token_ids), output.completions[0].finish_reason)
        assert found == (tokens, reason), f"{what}: the completion is {found}, expected {(tokens, reason)}: tokens, then the finish reason"


def _new_token(greedy: Sequence[int]) -> int:
    """Where, but among the first two and the last, a token comes for the first time; 0 where none does."""
    return next((i for i in range(2, len(greedy) - 1) if greedy[i] not in greedy[:i]), 0)


def _has_a_new_token(greedy: Sequence[int]) -> bool:
    return len(greedy) == GREEDY.max_new_tokens and _new_token(greedy) > 0


def _ending(bench: EngineBench) -> tuple[list[int], list[int]]:
    """A prompt and a greedy answer that ends by itself before its limit, synced: of a model in which the end of sequence and a token that
    an answer holds have changed places; where the engine knows no such places, of any that has one."""

    def fits(answer: list[int]) -> bool:
        return answer[-1] == bench.judge.eos_id and 2 <= len(answer) < GREEDY.max_new_tokens

    prompt, greedy = bench.answering(lambda a: _has_a_new_token(a) and not {a[_new_token(a)], bench.judge.eos_id} & set(a[:2]))
    changed, places = copy.deepcopy(bench.model), [bench.judge.eos_id, greedy[_new_token(greedy)]]
    with torch.no_grad():
        head = changed.get_output_embeddings().weight
        head[places] = head[places[::-1]]
    answer = bench.judge.greedy(changed, prompt, max_new_tokens=GREEDY.max_new_tokens)
    if not fits(answer):
        return bench.answering(fits)
    bench.sync(changed)
    return prompt, answer


def _around(prompt: list[int], greedy: list[int]) -> Iterator[Case]:
    """A stop token around `max_new_tokens`."""
    at = _new_token(greedy)
    for limit in (at, at + 1, at + 2):
        for ignoring in (False, True):
            sampling = replace(GREEDY, stop_token_ids=(greedy[at],), max_new_tokens=limit, ignore_eos=ignoring)
            what = f"a stop token as token {at + 1}, max_new_tokens={limit}, ignore_eos={ignoring}"
            yield what, prompt, sampling, greedy[: min(limit, at + 1)], "length" if limit == at else "stop"


def _in_the_context(bench: EngineBench) -> Iterator[Case]:
    """A stop token around the end of the context."""
    for room in (1, 2, 3):
        prompt = bench.filling(MAX_MODEL_LEN - room)
        answer = bench.judge.greedy(bench.model, prompt, max_new_tokens=room)
        end = next(i + 1 for i, token in enumerate(answer) if token == answer[-1])
        sampling = replace(GREEDY, stop_token_ids=(answer[-1],))
        yield f"a stop token as token {end} where the context has room for {room}", prompt, sampling, answer[:end], "stop"


def _texts(bench: EngineBench) -> Iterator[Case]:
    """Stop strings of one and of two tokens around `max_new_tokens`."""
    tokenizer, letters = tiny_tokenizer(), range(3, 3 + len(ALPHABET))

    def ends(greedy: list[int], length: int) -> tuple[str, int]:
        """The text of so many tokens after the first two, and with which token it is there for the first time."""
        text = str(tokenizer.decode(greedy[2 : 2 + length]))
        shown = [str(tokenizer.decode(greedy[:i], skip_special_tokens=True)) for i in range(len(greedy) + 1)]
        return text, next((i for i, before in enumerate(shown) if text in before), 0)

    for length in (1, 2):
        prompt, greedy = bench.answering(
            lambda a, n=length: len(a) == GREEDY.max_new_tokens and all(t in letters for t in a[: 2 + n]) and ends(a, n)[1] == 2 + n  # type: ignore[misc]
        )
        text, end = ends(greedy, length)
        for limit in (end - 1, end, end + 1):
            sampling = replace(GREEDY, stop=(text,), max_new_tokens=limit)
            what = f"the stop string {text!r} complete with token {end}, max_new_tokens={limit}"
            yield what, prompt, sampling, greedy[: min(limit, end)], "length" if limit < end else "stop"
    prompt, greedy = bench.answering(lambda a: len(a) == GREEDY.max_new_tokens and all(t in letters for t in a))
    for text in map(str, (tokenizer.decode(prompt), tokenizer.decode([prompt[-1], greedy[0]]))):
        if text not in str(tokenizer.decode(greedy)):
            what = f"the stop string {text!r}, which stands in the prompt {tokenizer.decode(prompt)!r} or begins there"
            yield what, prompt, replace(GREEDY, stop=(text,)), greedy, "length"
