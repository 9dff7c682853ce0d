"""Rewards begin while the engine generates, and give each completion what they would have given it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightrft.batch.collect import sequences_of
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.engine.hf import HFEngine
from lightrft.engine.progress import unread
from lightrft.errors import EngineError, RewardError
from lightrft.experience.early import EarlyRewards
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.experience.samples import samples_of
from lightrft.plugins.builtin import HF_CAPABILITIES
from lightrft.plugins.specs import EngineSpec
from lightrft.rewards.load import NamedReward
from lightrft.rewards.score import Scores, score
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.types import Completion, Request, RequestOutput, Sample, SamplingParams

WAIT_S = 20.0
first_scored = threading.Event()


class Waiting(HFEngine):
    """Returns only when a reward has run: with rewards that begin after it, never."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        outputs = super().generate(requests, sampling)
        assert first_scored.wait(WAIT_S), "no reward ran while the engine was generating"
        return outputs


class Lying(HFEngine):
    """Hands over other completions than it returns."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        other = [RequestOutput(id=r.id, prompt_token_ids=r.prompt_token_ids, completions=(answer([7]),) * sampling.n) for r in requests]
        for output in other:
            self.finished(output)
        self.finished = unread
        return super().generate(requests, sampling)


def answer(tokens: list[int]) -> Completion:
    return Completion(token_ids=tokens, finish_reason="length", weight_version=0)


def length(samples: Sequence[Sample]) -> list[float]:
    first_scored.set()
    return [sample.num_tokens + 0.25 * len(sample.prompt) for sample in samples]


def maker(folder: Path, engine: type[HFEngine], reward: Any = length, **settings: Any) -> tuple[ExperienceMaker, list[Prompt]]:
    first_scored.clear()
    spec = EngineSpec(name="planted", target=f"{__name__}:{engine.__name__}", capabilities=HF_CAPABILITIES)
    config = make_config(
        dict(
            strategy="single", engine_type="planted", generate_max_len=6, prompt_max_len=16, n_samples_per_prompt=2,
            micro_rollout_batch_size=2, logprob_gap_prompts=0, reward_while_generating=True,
        )
        | settings
    )  # fmt: skip
    strategy = get_strategy(config, registry=fake_registry(spec))
    strategy.setup_inference_engine(config, model_path=str(tiny_model_folder(folder, seed=2)))
    actor, _ = strategy.prepare_trainable(tiny_causal_lm(seed=2), optimizer=AdamWSettings(learning_rate=1e-2))
    made = ExperienceMaker(
        strategy=strategy, config=config, tokenizer=tiny_tokenizer(), actor=actor, initial_model=None,
        rewards=[NamedReward(name="length", function=reward, weight=2.0)],
        advantage_estimator=strategy.registry.load("advantage", "grpo"),
    )  # fmt: skip
    prompts = [Prompt(index=i, text="x" * i, token_ids=(5, 6 + i), answer=None, row={}) for i in range(5)]
    return made, prompts


def test_rewards_begin_while_the_engine_generates(tmp_path: Path) -> None:
    made, prompts = maker(tmp_path, Waiting)
    batch = made.generate(prompts)
    rewarded = made.reward(batch)
    metrics = made.metrics.reduce(None)
    expected = [2 * (sample.num_tokens + 0.25 * len(sample.prompt)) for sample in batch.samples]
    assert rewarded.rewards.tolist() == expected
    assert metrics["reward/length"] == pytest.approx(sum(expected) / 2 / len(expected))


def test_without_the_setting_they_see_all_at_once_and_afterwards(tmp_path: Path) -> None:
    seen: list[int] = []

    def counting(samples: Sequence[Sample]) -> list[float]:
        seen.append(len(samples))
        return length(samples)

    made, prompts = maker(tmp_path, HFEngine, counting, reward_while_generating=False)
    made.reward(made.generate(prompts))
    assert seen == [10]


def test_a_reward_that_fails_early_fails_the_rollout_as_ever(tmp_path: Path) -> None:
    def failing(samples: Sequence[Sample]) -> list[float]:
        raise KeyError("no key")

    made, prompts = maker(tmp_path, HFEngine, failing)
    with pytest.raises(RewardError, match="reward 'length' raised KeyError"):
        made.reward(made.generate(prompts))


def test_an_engine_that_hands_over_what_it_does_not_return_is_an_error(tmp_path: Path) -> None:
    made, prompts = maker(tmp_path, Lying)
    with pytest.raises(EngineError, match="handed over another completion of request 0 than it returned"):
        made.reward(made.generate(prompts))


def test_completions_of_a_prompt_stay_together_and_those_left_are_scored_at_the_end() -> None:
    calls: list[list[int]] = []
    prompts = [Prompt(index=i, text="", token_ids=(3,), answer=None, row={}) for i in range(3)]
    outputs = [
        RequestOutput(id=40 + i, prompt_token_ids=(3,), completions=(answer([4] * (i + 1)), answer([5] * (i + 2)))) for i in range(3)
    ]

    def scored(samples: Sequence[Sample]) -> Scores:
        calls.append([sample.num_tokens for sample in samples])
        return score(samples, rewards=[NamedReward(name="n", function=length)])

    early = EarlyRewards(read=lambda i, output: samples_of([prompts[i]], [output], tokenizer=tiny_tokenizer()), score=scored)
    early.finished(1, outputs[1])
    pairs = [((3,), completion) for output in outputs for completion in output.completions]
    samples = samples_of(prompts, outputs, tokenizer=tiny_tokenizer())
    found = early.scores(sequences_of(pairs, group_ids=[40, 40, 41, 41, 42, 42], samples=samples))
    assert found.total == found.parts["n"] == [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]
    assert calls == [[2, 3], [1, 2, 3, 4]]
