"""Partial rollouts by hand: answers that grow by slices, which prompts a step takes, their lags, and the weights that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightrft.batch.stages import REASONS, Sampled
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.distributed.world import World
from lightrft.errors import EngineError
from lightrft.experience.gap import add_gap, add_lag_weights, corrections
from lightrft.experience.partial import PartialAnswers, PartialRollouts
from lightrft.experience.unfinished import Answer, answers_of_state, state_of
from lightrft.observe.metrics import StepMetrics
from lightrft.strategy.factory import get_strategy
from lightrft.testing.batches import batch_of
from lightrft.testing.fake_engine import VOCAB_SIZE
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.small_trainer import ALPHABET, config_of, prompts
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import Completion, RequestOutput, SamplingParams

STOP = 1


def drawn(tokens: Sequence[int], reason: Any, version: int = 1) -> Completion:
    return Completion(token_ids=tokens, finish_reason=reason, weight_version=version, logprobs=[-0.5 * token for token in tokens])


def test_an_answer_grows_by_slices_of_other_weights_to_its_limit() -> None:
    answer = Answer()
    answer.add(drawn([5, 6, 7, 8], "length"), asked=4, limit=10)
    answer.add(drawn([5, 6, 7, 8], "length", 2), asked=4, limit=10)
    assert answer.finish_reason is None
    answer.add(drawn([9, 9, 9, STOP], "stop", 3), asked=4, limit=10)  # the stop token is the twelfth
    assert (answer.token_ids, answer.finish_reason) == ([5, 6, 7, 8, 5, 6, 7, 8, 9, 9], "length")
    assert answer.versions == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert answer.logprobs == [-2.5, -3.0, -3.5, -4.0, -2.5, -3.0, -3.5, -4.0, -4.5, -4.5]
    assert answer.completion().weight_version == 3


@pytest.mark.parametrize(
    ("tokens", "reason", "asked", "ends"),
    [
        ([5, STOP], "stop", 2, "stop"),
        ([5, 6], "length", 2, None),
        ([5, 6], "length", 4, "length"),  # the engine's context is full
        ([5, 6, 7], "length", 3, "length"),
        ([5, 6, STOP], "stop", 3, "stop"),  # the last token that fits
        ([5], "abort", 2, "abort"),
    ],
)
def test_what_ends_an_answer_of_three_tokens_at_most(tokens: list[int], reason: Any, asked: int, ends: str | None) -> None:
    answer = Answer()
    answer.add(drawn(tokens, reason), asked=asked, limit=3)
    assert answer.finish_reason == ends


def test_a_slice_without_log_probs_is_refused() -> None:
    with pytest.raises(EngineError, match="no log-probs for a slice"):
        Answer().add(Completion(token_ids=[5], finish_reason="stop", weight_version=1), asked=4, limit=4)


def test_saved_answers_are_the_same_answers() -> None:
    answers = [Answer(), Answer(), Answer()]
    answers[0].add(drawn([5, STOP], "stop", 3), asked=4, limit=8)
    answers[1].add(Completion(token_ids=[5, 6], finish_reason="length", weight_version=4, logprobs=[-0.1, -1 / 3]), asked=2, limit=8)
    assert answers_of_state(state_of(answers)) == answers


class Planned:
    """A strategy of one rank whose engine ends the answer to prompt p after `lengths[p]` tokens. The prompt is the one token 10 + p."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.weight_version, self.world, self.slept = lengths, 1, World.alone(), 0

    def gather_and_generate(self, *, sampling_params: SamplingParams, all_prompt_token_ids: Any, **_: Any) -> list[RequestOutput]:
        return [self._answer(ids, sampling_params.max_new_tokens) for ids in all_prompt_token_ids]

    def all_reduce(self, data: Any, op: str) -> Any:
        return data

    def maybe_sleep_inference_engine(self) -> None:
        self.slept += 1

    def _answer(self, ids: Sequence[int], asked: int) -> RequestOutput:
        left = self.lengths[ids[0] - 10] - (len(ids) - 1)
        tokens = [5] * left if left > asked else [5] * (left - 1) + [STOP]
        completion = drawn(tokens[:asked], "length" if left > asked else "stop", self.weight_version)
        return RequestOutput(id=0, prompt_token_ids=ids, completions=(completion,))


TOKENIZER = SimpleNamespace(batch_decode=lambda ids, **_: ["" for _ in ids])


def step(unit: PartialRollouts[Any], stream: list[Prompt]) -> tuple[Sampled, dict[str, float]]:
    """Begins as many prompts of the stream as are wanted."""
    metrics, [wanted] = StepMetrics(), unit.wanted()
    begun, stream[:] = stream[:wanted], stream[wanted:]
    batch = unit.sampled(begun, metrics=metrics)
    return batch, metrics.reduce(None)


def test_three_steps_by_hand() -> None:
    """Two prompts a step and four in flight, slices of two tokens, one update of lag."""
    lengths = [2, 7, 2, 4, 1, 6, 2, 2]
    stream = [Prompt(index=i, text=str(i), token_ids=(10 + i,), answer=None, row={}) for i in range(8)]
    settings = {"rollout_batch_size": 2, "n_samples_per_prompt": 1, "oversample": 2, "max_version_lag": 1, "slice_max_len": 2}
    strategy: Any = Planned(lengths)
    config = make_config(settings | {"generate_max_len": 8})
    unit = PartialAnswers(strategy=strategy, config=config, tokenizer=TOKENIZER, prompts=list(stream))

    first, metrics = step(unit, stream)  # prompts 0 and 2 end in the first slice
    assert first.group_ids.tolist() == [0, 2] and first.num_sampled.tolist() == [2, 2]
    assert (metrics["partial/slices"], metrics["partial/in_flight"], metrics["partial/continued"]) == (1, 2, 0.0)
    assert (metrics["partial/lag/0"], metrics["partial/lag/1"]) == (4.0, 0.0)

    strategy.weight_version = 2
    second, metrics = step(unit, stream)  # 3 and 4 end in its first slice, and it waits for 1, which the next step could not take
    assert second.group_ids.tolist() == [1, 3] and second.num_sampled.tolist() == [7, 4]
    assert second.sampled(second.versions).tolist() == [1, 1, 2, 2, 2, 2, 2, 1, 1, 2, 2]
    assert (metrics["partial/slices"], metrics["partial/in_flight"], metrics["partial/continued"]) == (3, 2, 1.0)
    assert (metrics["partial/lag_mean"], metrics["partial/lag_max"]) == (4 / 11, 1.0)
    assert (metrics["partial/lag/0"], metrics["partial/lag/1"]) == (7.0, 4.0)

    strategy.weight_version = 3
    third, metrics = step(unit, stream)  # 4 and 5 are finished already
    assert third.group_ids.tolist() == [4, 5] and third.num_sampled.tolist() == [1, 6] and not stream
    assert (metrics["partial/slices"], metrics["partial/lag_mean"], metrics["partial/lag_max"]) == (0, 1.0, 1.0)
    assert unit.wanted() == [2] and strategy.slept == 3
    assert third.finish_reasons.tolist() == [REASONS.index("stop")] * 2


def test_weights_are_the_ratios_of_the_weights_now_and_then() -> None:
    """Four tokens, two of older weights: now they have probability 1/2, 1/4, 1/5, 1/10, and had 1/4, 1/2 then."""
    now, then = [math.log(p) for p in (0.5, 0.25, 0.2, 0.1)], [math.log(p) for p in (0.25, 0.5, 0.2, 0.1)]
    batch = batch_of(Sampled, [([3], [5, 6, 7, 8])], engine_logprobs=[then])
    batch = replace(batch, versions=torch.tensor([2, 1, 1, 2, 2], dtype=torch.int32))
    trainer = batch.on_tokens(torch.tensor(now))
    torch.testing.assert_close(corrections(batch, trainer, level="token", cap=1.5), torch.tensor([0.0, 1.5, 0.5, 1.0, 1.0]))
    metrics = StepMetrics()
    add_lag_weights(metrics, batch, trainer, cap=1.5)
    strategy: Any = Planned([])
    strategy.weight_version = 2
    config = make_config({"oversample": 1.5, "max_version_lag": 1})
    unit = PartialAnswers(strategy=strategy, config=config, tokenizer=TOKENIZER, prompts=[])
    add_gap(metrics, unit.fresh(batch), trainer)
    found = metrics.reduce(None)
    assert found["partial/ess"] == pytest.approx(4.5**2 / (4 * (4 + 0.25 + 1 + 1))) and found["partial/clipped"] == 0.25
    assert found["rollout/logprob_gap"] == pytest.approx(0.0, abs=1e-6), "tokens of older weights say nothing of the engine"


def test_an_answer_that_goes_on_is_the_one_that_is_sampled_whole(tmp_path: Path) -> None:
    """Greedily, under weights that are sent again unchanged: its tokens and log-probs."""
    config = config_of(
        tmp_path, engine_type="hf", top_k=1, n_samples_per_prompt=1, oversample=1.5, max_version_lag=8, slice_max_len=3,
        generate_max_len=11, ignore_eos=True,
    )  # fmt: skip
    strategy = get_strategy(config, registry=fake_registry())
    folder = tiny_model_folder(tmp_path / "base", alphabet=ALPHABET, vocab_size=VOCAB_SIZE, seed=2)
    strategy.setup_inference_engine(config, model_path=str(folder))
    actor = tiny_causal_lm(seed=2, vocab_size=VOCAB_SIZE)
    whole = strategy.gather_and_generate(
        sampling_params=SamplingParams(top_k=1, max_new_tokens=11, ignore_eos=True),
        all_prompt_token_ids=[prompt.token_ids for prompt in prompts()], sleep_engine=False, logprobs=True,
    )  # fmt: skip
    unit = PartialAnswers(strategy=strategy, config=config, tokenizer=tiny_tokenizer(ALPHABET), prompts=prompts())
    unit._begin(prompts())
    for _ in range(4):
        unit._grow()
        strategy.update_engine_weights(actor)
    batch = unit._columns(unit._groups)
    assert batch.sampled(batch.versions).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3] * 6
    for output, tokens, logprobs in zip(whole, batch.by_sequence(batch.token_ids), batch.by_sequence(batch.engine_logprobs), strict=True):
        assert tokens.tolist() == list(output.completions[0].token_ids)
        torch.testing.assert_close(logprobs, torch.tensor(output.completions[0].logprobs), rtol=0, atol=1e-5)
