"""Ranks stay together where a reward fails on one, where groups are sampled until there are enough, and where completions move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lightrft.batch.stages import Rewarded
from lightrft.config.load import make_config
from lightrft.data.prompts import Prompt
from lightrft.data.sampler import PromptSampler
from lightrft.errors import RewardError
from lightrft.experience.dynamic import DynamicSampling
from lightrft.experience.scored import score_everywhere
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warnings_log import Warnings
from lightrft.rewards.load import NamedReward
from lightrft.rewards.remote import RemoteReward, RemoteSettings
from lightrft.strategy.factory import get_strategy
from lightrft.testing.batches import batch_of
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_reward_folder
from lightrft.trainer.reward_models import build_rewards
from lightrft.types import Sample


def one_rank_without_its_server() -> tuple[str, float]:
    strategy = get_strategy(make_config({"strategy": "fsdp"}))
    sample = Sample(prompt="p", completion="c")
    dead = RemoteReward("judge", "http://127.0.0.1:9/", RemoteSettings(retries=1, backoff_s=0.01, timeout_s=5))
    good = NamedReward(name="r", function=lambda samples: [1.0] * len(samples))
    rewards = [NamedReward(name="judge", function=dead) if strategy.world.rank == 1 else good]
    message = ""
    try:
        score_everywhere([sample], rewards=rewards, strategy=strategy)
    except RewardError as error:
        message = str(error)
    # All ranks are out of it: they can still meet, as they have to for a checkpoint.
    return message, float(strategy.all_reduce(torch.ones(1), "sum"))


def test_all_ranks_stop_together_and_can_still_meet() -> None:
    (first, met), (second, also) = run_spmd(one_rank_without_its_server, 2)
    assert second.startswith("reward server 'judge' (http://127.0.0.1:9/) gave no rewards for 1 samples, asked 2 times")
    assert first == f"scoring completions failed on rank 1 of its group: RewardServerError: {second}"
    assert met == also == 2.0


def rows_of(world_size: int) -> list[tuple[list[str], float, int]]:
    return run_spmd(dynamically, world_size)


def dynamically() -> tuple[list[str], float, int]:
    """Eight prompts a rollout, of which every third has a signal, and all of them are of the stream that a rank count only cuts."""
    config = make_config(
        {"strategy": "fsdp", "rollout_batch_size": 8, "n_samples_per_prompt": 2, "dynamic_sampling": True, "train_batch_size": 16}
    )
    strategy = get_strategy(config)
    world = strategy.world
    strategy.maybe_sleep_inference_engine = lambda: None  # type: ignore[method-assign]
    sampler = PromptSampler(64, batch_size=8, rank=world.rank, world_size=world.world_size, seed=3)
    metrics = StepMetrics()

    def next_prompts() -> list[Prompt]:
        return [Prompt(index=i, text=str(i), token_ids=(1,), answer=None, row={}) for i in sampler.next_batch()]

    def rollout(prompts: Sequence[Prompt]) -> Rewarded:
        first = world.rank * len(prompts)
        rows = [(index, prompt, sample) for index, prompt in enumerate(prompts) for sample in range(2)]
        return batch_of(
            Rewarded,
            [([1], [1] * (1 + prompt.index)) for _, prompt, _ in rows],
            group_ids=[first + index for index, _, _ in rows],
            samples=[Sample(prompt=prompt.text, completion="c") for _, prompt, _ in rows],
            rewards=[float(prompt.index % 3 == 0 and sample) for _, prompt, sample in rows],
        )

    unit = DynamicSampling(
        strategy=strategy, config=config, next_prompts=next_prompts, rollout=rollout, reward=lambda rewarded: rewarded,
        warnings=Warnings(world=strategy.world), metrics=metrics,
    )  # fmt: skip
    rows = unit.collect()
    return sorted({sample.prompt for sample in rows.samples}), metrics.reduce(world.group)["sampling/rollouts"], len(rows)


def test_dynamic_sampling_takes_the_same_prompts_on_any_number_of_ranks() -> None:
    [(alone, rollouts, number)] = rows_of(1)
    (first, also, half), (second, _, other) = rows_of(2)
    assert sorted(first + second) == sorted(alone) and len(alone) == 8 and rollouts == also >= 3
    assert (number, half, other) == (16, 8, 8)
    assert all(int(prompt) % 3 == 0 for prompt in alone)


def ask_a_model(folder: str, settings: dict[str, object]) -> tuple[list[float], str]:
    asked = {"strategy": "fsdp", "reward": [f"judge=model:{folder}"], "micro_rollout_batch_size": 2, "reward_key": "kind"}
    config = make_config(asked | settings)
    strategy = get_strategy(config)
    rewards = build_rewards(config, strategy)
    # Rank 0 has five samples, rank 1 has none: it takes part in every pass all the same.
    samples = [Sample(prompt=f"{n} + {n} =", completion="7" * n) for n in range(5 if strategy.world.rank == 0 else 0)]
    found = score_everywhere(samples, rewards=rewards, strategy=strategy, reward_key="kind").total
    wrong = [Sample(prompt="1", completion="1", row={"kind": "jugde"})] if strategy.world.rank == 1 else samples
    message = ""
    try:
        score_everywhere(wrong, rewards=rewards, strategy=strategy, reward_key="kind")
    except RewardError as error:
        message = str(error)
    strategy.all_reduce(1.0, "sum")
    return found, message


def test_a_reward_model_is_asked_by_all_ranks_though_one_has_no_samples(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", seed=3)
    packed = {"packing_samples": True, "max_tokens_per_micro_batch": 24}
    (alone, _), *_ = run_spmd(ask_a_model, 1, str(folder), {})
    (first, told), (second, own) = run_spmd(ask_a_model, 2, str(folder), packed)
    assert second == [] and len(alone) == 5 and all(abs(a - b) < 1e-5 for a, b in zip(first, alone, strict=True))
    assert "there is no reward 'jugde'; did you mean 'judge'?" in own and "failed on rank 1" in told and own in told
