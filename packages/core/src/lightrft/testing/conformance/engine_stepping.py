"""Requests that are started while others are drawn, as the turns of conversations are: each completion comes once, and is the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightrft.engine.base import InferenceEngine
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import GREEDY, EngineBench, requests_of
from lightrft.types import Ended, Request, RequestOutput, SamplingParams

POLLS = 100_000
"""After so many an engine that has not given all that was started never will."""


class Stepping(EngineKit, kit=True):
    """`start`, `poll` and `abort`."""

    @requirement("start")
    def test_what_is_started_comes_once_and_is_the_models(self, bench: EngineBench) -> None:
        """Requests started before and after a poll: each completion comes once, greedy ones the model's, others those of `generate`"""
        bench.sync(bench.lively[1])
        prompts = [*bench.prompts, bench.filling(17)]
        requests = requests_of(prompts, logprobs=bench.can(Capability.LOGPROBS))
        found = self._started(bench, requests, GREEDY)
        for request in requests:
            answer, expected = list(found[request.id].completions[0].token_ids), bench.greedy(request.prompt_token_ids)
            assert answer == expected, f"request {request.id} of {len(requests)}, started, is answered {answer}, not {expected}"
        sampling = SamplingParams(n=2, max_new_tokens=8)
        found = self._started(bench, requests, sampling)
        for request in requests:
            if bench.can(Capability.LOGPROBS):
                bench.judge_group(found[request.id], sampling, bound=FP32_ERROR, where="started while others run")
        if bench.can(Capability.SEED):
            for output in bench.engine.generate(requests, sampling):
                drawn, started = ([list(c.token_ids) for c in o.completions] for o in (output, found[output.id]))
                assert drawn == started, f"request {output.id} draws {drawn} by generate, and {started} where it is started, of one seed"

    @requirement("abort")
    def test_what_was_aborted_never_comes(self, bench: EngineBench) -> None:
        """After `abort` a poll returns nothing, and the same ids may be started again"""
        bench.sync(bench.lively[1])
        engine, requests = bench.engine, requests_of(bench.prompts, logprobs=False)
        engine.start(requests, replace(GREEDY, max_new_tokens=64, ignore_eos=True))
        if bench.can(Capability.STEPPING):
            engine.poll()
        engine.abort()
        engine.abort()
        late = [ended for _ in range(20) for ended in engine.poll()]
        assert not late, f"after an abort a poll gave completions of the requests {sorted({one.id for one in late})}"
        found = self._started(bench, requests, GREEDY)
        for request in requests:
            assert list(found[request.id].completions[0].token_ids) == bench.greedy(request.prompt_token_ids), "other tokens after an abort"

    @requirement("poll", needs=Capability.STEPPING)
    def test_a_short_request_joins_a_long_one(self, bench: EngineBench) -> None:
        """A request of 4 tokens that is started after one of 400 has begun ends before it"""
        if not bench.can(Capability.STEPPING):
            return
        bench.sync(bench.lively[1])
        engine, [long, short] = bench.engine, requests_of([bench.short, bench.filling(36)], logprobs=False)
        engine.start([long], SamplingParams(max_new_tokens=400, ignore_eos=True))
        first = [one.id for one in engine.poll()]
        engine.start([short], SamplingParams(max_new_tokens=4, ignore_eos=True))
        order = first + [one.id for one in _until(engine, 2 - len(first))]
        assert order == [short.id, long.id], "a request of 4 tokens, started while one of 400 is drawn, waits for its end"

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _started(self, bench: EngineBench, requests: Sequence[Request], sampling: SamplingParams) -> dict[int, RequestOutput]:
        """By id; the second half is started after a poll."""
        engine, half, n = bench.engine, len(requests) // 2, sampling.n
        engine.start(requests[:half], sampling)
        ended = engine.poll()
        engine.start(requests[half:], sampling)
        ended += _until(engine, n * len(requests) - len(ended))
        ended += [one for _ in range(3) for one in engine.poll()]
        came = sorted((one.id, one.index) for one in ended)
        expected = sorted((request.id, index) for request in requests for index in range(n))
        twice = sorted({key for key in came if came.count(key) > 1})
        assert not twice, f"completions came twice: (request, sample) {twice}"
        assert came == expected, f"completions (request, sample) {came} came, started were {expected}"
        by_key = {(one.id, one.index): one.completion for one in ended}
        return {
            r.id: RequestOutput(id=r.id, prompt_token_ids=r.prompt_token_ids, completions=tuple(by_key[r.id, index] for index in range(n)))
            for r in requests
        }


def _until(engine: InferenceEngine, number: int) -> list[Ended]:
    """So many completions, or more."""
    found: list[Ended] = []
    for _ in range(POLLS):
        if len(found) >= number:
            return found
        found += engine.poll()
    raise AssertionError(f"{number - len(found)} of {number} completions that were started never came")
