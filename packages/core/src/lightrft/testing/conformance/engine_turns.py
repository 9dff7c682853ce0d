"""Conversations: a turn follows from all tokens before it, whoever wrote them, and is of the weights that the engine has now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit, tokens
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of
from lightrft.types import SamplingParams

BEGINNINGS = (3, 200, 36, 17)
"""Tokens of the prompts. Two conversations begin with each, and are told different words."""

TURNS = 3


@dataclass
class Talk:
    """A conversation as it grows; `drawn` are the engine's own tokens, turn by turn."""

    name: int
    token_ids: list[int]
    drawn: list[list[int]]

    def go_on(self, answer: Sequence[int], told: Sequence[int]) -> None:
        self.token_ids += [*answer, *told]
        self.drawn.append(list(answer))


class Turns(EngineKit, kit=True):
    """What an environment asks of an engine: that a prompt may be an earlier prompt with its answer and further tokens behind it."""

    @requirement("generate")
    def test_a_turn_is_drawn_after_all_tokens_before_it(self, bench: EngineBench) -> None:
        """Three turns of 8 conversations, two of each beginning, in another order each time: every turn, and its log-probs, the model's"""
        bench.sync(bench.lively[1])
        talks = self._begun(bench)
        for number in range(TURNS):
            for talk, answer in zip(talks, self._asked(bench, talks, f"in turn {number + 1}"), strict=True):
                talk.go_on(answer, self._told(bench, talk, number))
            talks = talks[1::2] + talks[::2]
        self._drawn(bench, talks)

    @requirement("update_weights")
    def test_a_turn_after_a_sync_is_of_the_new_weights(self, bench: EngineBench) -> None:
        """Conversations that began before a sync go on with its weights and its version, whatever is kept of their earlier turns"""
        bench.sync(bench.lively[1])
        talks = self._begun(bench)
        for number, model in enumerate((bench.lively[2], bench.lively[0])):
            for talk, answer in zip(talks, self._asked(bench, talks, f"in turn {number + 1}"), strict=True):
                talk.go_on(answer, self._told(bench, talk, number))
            bench.sync(model)
        for talk in talks:
            outputs = bench.engine.generate(requests_of([talk.token_ids], logprobs=False), GREEDY)
            versions = [c.weight_version for c in outputs[0].completions]
            assert versions == [bench.version], (
                f"a turn after a sync carries the version {versions}, expected {bench.version}: that of the conversation's beginning?"
            )
        self._asked(bench, talks, "in a turn after two syncs")
        self._drawn(bench, talks)

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _begun(self, bench: EngineBench) -> list[Talk]:
        prompts = [bench.filling(length) for length in BEGINNINGS for _ in range(2)]
        return [Talk(name, prompt, []) for name, prompt in enumerate(prompts)]

    def _told(self, bench: EngineBench, talk: Talk, number: int) -> list[int]:
        """Words of an environment: other ones for each conversation and turn, of 1 to 5 tokens, an end of sequence among them."""
        size, kinds = 1 + (talk.name + number) % 5, bench.judge.vocab_size - 3
        return [bench.judge.eos_id, *(3 + (5 * talk.name + 3 * number + at) % kinds for at in range(size))][-size - talk.name % 2 :]

    def _asked(self, bench: EngineBench, talks: Sequence[Talk], where: str) -> list[list[int]]:
        """The next turn of all conversations at once, greedy."""
        outputs = bench.engine.generate(requests_of([talk.token_ids for talk in talks], logprobs=False), GREEDY)
        found = [answers[0] for answers in tokens(outputs)]
        for talk, answer in zip(talks, found, strict=True):
            expected = bench.greedy(talk.token_ids)
            assert answer == expected, (
                f"{where} conversation {talk.name} of {len(talks)} is answered {answer}, not {expected}: "
                f"{self._hint(bench, talk, talks, answer)}"
            )
        return found

    def _hint(self, bench: EngineBench, talk: Talk, talks: Sequence[Talk], answer: list[int]) -> str:
        """All that the answer is one of: a short one may be several."""
        other = next((one for one in talks if one.name != talk.name and answer == bench.greedy(one.token_ids)), None)
        own = [*talk.token_ids[: BEGINNINGS[talk.name // 2]], *(token for turn in talk.drawn for token in turn)]
        found = {
            "the weights before the last sync answer so": answer == bench.greedy_before(talk.token_ids),
            "that is its turn before, once more": bool(talk.drawn) and answer == talk.drawn[-1],
            f"that is the answer to conversation {other.name if other else ''}": other is not None,
            "the tokens between its own turns are lost": bool(talk.drawn) and answer == bench.greedy(own),
        }
        return ", or ".join(hint for hint, holds in found.items() if holds) or "of some token before it something else was computed"

    def _drawn(self, bench: EngineBench, talks: Sequence[Talk]) -> None:
        """Two samples of another turn, with log-probs where the engine has such."""
        if not bench.can(Capability.LOGPROBS):
            return
        sampling = SamplingParams(n=2, max_new_tokens=6)
        for output in bench.engine.generate(requests_of([talk.token_ids for talk in talks]), sampling):
            bench.judge_group(output, sampling, bound=FP32_ERROR, where="in a later turn of a conversation")
