"""Under load an engine answers as it does to one prompt: more prompts than a batch, many samples, ends of all lengths, several calls."""

from __future__ import annotations

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_draws import FP32_ERROR
from lightrft.testing.conformance.engine_kit import EngineKit
from lightrft.testing.conformance.engine_limits import end_problem
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import MAX_BATCH_SIZE, EngineBench, requests_of
from lightrft.types import Request, RequestOutput, SamplingParams

NUM_PROMPTS = 3 * MAX_BATCH_SIZE
SAMPLES = 8
LENGTHS = (3, 41, 7, 96, 1, 18, 60, 2)
"""Tokens of the prompts, in turn: neither rising nor falling."""


class Load(EngineKit, kit=True):
    """Many completions at once."""

    @requirement("generate")
    def test_under_load_every_completion_is_the_models(self, bench: EngineBench) -> None:
        """24 prompts, 8 samples, log-probs for all, several calls and a sync between: log-probs, greedy tokens, ends, order and versions"""
        stops = tuple(range(3, 3 + bench.judge.vocab_size // 8))  # an end each few tokens, so that completions end one by one
        draw = SamplingParams(n=SAMPLES, max_new_tokens=24, stop_token_ids=stops)
        greedy = SamplingParams(n=SAMPLES, max_new_tokens=12, stop_token_ids=stops, temperature=0.0)
        for call, (synced, sampling) in enumerate(((1, draw), (None, greedy), (2, draw))):
            if synced is not None:
                bench.sync(bench.models[synced])
            requests = self._requests(bench, first_seed=100 + 1_000_000 * call)
            outputs = bench.engine.generate(requests, sampling)
            self._they_answer(bench, requests, outputs, sampling)
            self._their_values(bench, outputs, sampling)

    def _requests(self, bench: EngineBench, *, first_seed: int) -> list[Request]:
        prompts = [bench.filling(LENGTHS[i % len(LENGTHS)] + i)[i:] for i in range(NUM_PROMPTS)]
        return requests_of(prompts, logprobs=bench.can(Capability.LOGPROBS), first_seed=first_seed)

    def _they_answer(self, bench: EngineBench, requests: list[Request], outputs: list[RequestOutput], sampling: SamplingParams) -> None:
        """Order, numbers, ends and versions."""
        found, asked = [(o.id, list(o.prompt_token_ids)) for o in outputs], [(r.id, list(r.prompt_token_ids)) for r in requests]
        assert found == asked, (
            f"of {len(requests)} requests at once the outputs are of {[i for i, _ in found]}: another order, or other prompts"
        )
        for output in outputs:
            completions = output.completions
            assert len(completions) == sampling.n, (
                f"request {output.id} of {len(requests)} has {len(completions)} completions, asked n={sampling.n}"
            )
            problems = [p for c in completions if (p := end_problem(c, output.prompt_token_ids, sampling, eos_id=bench.judge.eos_id))]
            assert not problems, f"request {output.id} of {len(requests)} at once: {problems[0]}"
            versions = {c.weight_version for c in completions}
            assert versions == {bench.version}, (
                f"request {output.id} carries the versions {sorted(versions)}, of the last sync is {bench.version}"
            )

    def _their_values(self, bench: EngineBench, outputs: list[RequestOutput], sampling: SamplingParams) -> None:
        """Greedy tokens and log-probs are the model's; drawn samples of a prompt are not one and the same."""
        stops = set(sampling.stop_token_ids)
        for output in outputs:
            drawn = [list(c.token_ids) for c in output.completions]
            if sampling.temperature == 0:
                whole = bench.judge.greedy(bench.model, output.prompt_token_ids, max_new_tokens=sampling.max_new_tokens)
                end = next((i + 1 for i, token in enumerate(whole) if token in stops), len(whole))
                other = next((d for d in drawn if d != whole[:end]), None)
                assert other is None, f"under load a greedy completion of request {output.id} is {other}, alone it is {whole[:end]}"
            else:
                assert len({tuple(d) for d in drawn}) > 1, (
                    f"under load the {sampling.n} samples of request {output.id} are one draw, copied"
                )
            if bench.can(Capability.LOGPROBS):
                bench.judge_group(output, sampling, bound=FP32_ERROR)
