"""Faults of an engine that show in conversations only: a prompt that is an earlier one with its answer and further tokens behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kit_mutants.engine_draws import each
from kit_mutants.mutant import mutant
from lightrft.engine.base import EngineSetup
from lightrft.engine.hf import HFEngine
from lightrft.plugins.specs import Capability
from lightrft.testing.fake_engine import FakeEngine, SteppingEngine
from lightrft.types import Completion, Ended, Request, RequestOutput, SamplingParams

Outputs = list[RequestOutput]

TURN = "a_turn_is_drawn_after_all_tokens_before_it"
AFTER_SYNC = "a_turn_after_a_sync_is_of_the_new_weights"
STARTED = "what_is_started_comes_once_and_is_the_models"


class Remembers(FakeEngine):
    """Keeps what it was asked and answered: `_met` has, for the tokens of a prompt and its answer, what the next turn may build on."""

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._met: dict[tuple[int, ...], tuple[int | None, int]] = {}

    def _begun(self, request: Request) -> tuple[int, ...] | None:
        """The longest conversation that it knows, which this one goes on."""
        ids = tuple(request.prompt_token_ids)
        return max((known for known in self._met if known == ids[: len(known)] and len(known) < len(ids)), key=len, default=None)

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        for output in outputs:
            begun = self._begun(Request(id=0, prompt_token_ids=output.prompt_token_ids, seed=0))
            kept = self._met[begun] if begun is not None else (self._weights, self._version)
            for completion in output.completions:
                self._met.setdefault((*output.prompt_token_ids, *completion.token_ids), kept)
        return outputs


@mutant("fake engine", "what an environment says between two turns is lost", test=TURN, words="between its own turns are lost")
class ToolTokensLost(Remembers):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._own: dict[tuple[int, ...], tuple[int, ...]] = {}

    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        begun = max((known for known in self._own if known == tuple(request.prompt_token_ids[: len(known)])), key=len, default=None)
        seen = self._own[begun] if begun is not None else tuple(request.prompt_token_ids)
        completion = super()._complete(replace(request, prompt_token_ids=seen), sampling, sample)
        self._own[(*request.prompt_token_ids, *completion.token_ids)] = (*seen, *completion.token_ids)
        return completion


@mutant("fake engine", "later turns are answered in the order of the first ones", test=TURN, words="that is the answer to conversation")
class TurnsInTheOrderOfTheFirst(Remembers):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        known = [self._begun(request) for request in requests]
        outputs = super().generate(requests, sampling)
        if any(begun is None for begun in known) or len(set(known)) < len(known):
            return outputs
        order = sorted(range(len(requests)), key=lambda at: len(known[at] or ()))
        return [replace(output, completions=outputs[at].completions) for output, at in zip(outputs, order, strict=True)]


@mutant("fake engine", "two conversations of one beginning go on as one", test=TURN, words="that is the answer to conversation")
class ConversationsDuplicated(Remembers):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        known = [self._begun(request) for request in requests]
        outputs = super().generate(requests, sampling)
        firsts = {begun: output for begun, output in zip(reversed(known), reversed(outputs), strict=True) if begun is not None}
        return [replace(o, completions=(firsts[begun] if begun else o).completions) for o, begun in zip(outputs, known, strict=True)]


@mutant("fake engine", "a conversation that goes on is answered with its turn before", test=TURN, words="its turn before, once more")
class TurnFinishedTwice(FakeEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._turns: dict[tuple[int, ...], Completion] = {}

    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        ids = tuple(request.prompt_token_ids)
        before = next((c for known, c in self._turns.items() if known == ids[: len(known)] and len(known) < len(ids)), None)
        completion = before or super()._complete(request, sampling, sample)
        self._turns[(*ids, *completion.token_ids)] = completion
        return completion


@mutant("hf", "log-probs of a later turn are shifted by one token", test=TURN, words="shifted by one token")
class LaterLogprobsShifted(HFEngine):
    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._met: set[tuple[int, ...]] = set()

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        def follows(output: RequestOutput) -> bool:
            ids = tuple(output.prompt_token_ids)
            return any(known == ids[: len(known)] and len(known) < len(ids) for known in self._met)

        outputs = super().generate(requests, sampling)
        shifted = each(outputs, lambda c: replace(c, logprobs=c.logprobs and [0.0, *c.logprobs[:-1]]))
        given = [late if follows(output) else output for output, late in zip(outputs, shifted, strict=True)]
        self._met |= {(*o.prompt_token_ids, *c.token_ids) for o in outputs for c in o.completions}
        return given


@mutant("fake engine", "what was kept of a conversation outlives a sync", test=AFTER_SYNC, words="the weights before the last sync")
class ConversationOutlivesASync(Remembers):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        now, begun = self._weights, self._begun(request)
        self._weights = now if begun is None else self._met[begun][0]
        completion = super()._complete(request, sampling, sample)
        self._weights = now
        return completion


@mutant("fake engine", "a turn carries the version of its conversation's first one", test=AFTER_SYNC, words="the conversation's beginning?")
class VersionOfTheFirstTurn(Remembers):
    def _complete(self, request: Request, sampling: SamplingParams, sample: int) -> Completion:
        completion, begun = super()._complete(request, sampling, sample), self._begun(request)
        return completion if begun is None else replace(completion, weight_version=self._met[begun][1])


# ---- turns that join those that run --------------------------------------------------------------------------------------------------


@mutant("fake engine", "a completion that ended is given at the next poll as well", test=STARTED, words="came twice")
class EndedTwice(FakeEngine):
    last: Sequence[Ended] = ()

    def poll(self) -> list[Ended]:
        before, ended = self.last, super().poll()
        self.last = ended[:1]
        return [*before, *ended]


@mutant("fake engine", "a request that is started while others run is lost", test=STARTED, words="never came")
class SecondStartLost(SteppingEngine):
    def start(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        if not self._drawn:
            super().start(requests, sampling)


@mutant("fake engine", "the samples of a request are exchanged", test=STARTED, words="of one seed")
class SamplesExchanged(SteppingEngine):
    def poll(self) -> list[Ended]:
        return [replace(one, index=1 - one.index) for one in super().poll()] if self._pairs else super().poll()

    def start(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        self._pairs = sampling.n == 2
        super().start(requests, sampling)


@mutant("hf", "log-probs of what is started are of the tempered distribution", test=STARTED, words="started while others run")
class StartedLogprobsOff(HFEngine):
    def poll(self) -> list[Ended]:
        return [replace(e, completion=replace(e.completion, logprobs=[2 * p for p in e.completion.logprobs or ()])) for e in super().poll()]


@mutant("fake engine", "what is aborted goes on", test="what_was_aborted_never_comes", words="after an abort a poll gave")
class AbortForgotten(FakeEngine):
    def abort(self) -> None:
        """Nothing."""


@mutant(
    "fake engine", "it says that requests join, and they wait", test="a_short_request_joins_a_long_one", words="waits for its end",
    declares={Capability.STEPPING},
)  # fmt: skip
class WaitsForAll(FakeEngine):
    """As an engine without `stepping` is."""
