"""Every algorithm's update is the same however the batch is dealt out: ranks 1, 2, micro-batches of 1, 2, 4, unequal groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lightrft.batch.stages import Scored
from lightrft.config.load import make_config
from lightrft.models.critic import make_critic
from lightrft.plugins.registry import Registry
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StrategyBase
from lightrft.testing.batches import batch_of
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.trainer.invariance import BOUND, Models, Split, Tensors, difference, gradients

BY_TOKEN = ("old_logprobs", "reference_logprobs", "corrections", "values")
SIZES = (3, 1, 4, 2)
"""Groups of unequal size, one of them alone."""

KL = {"kl_coef": 0.3, "kl_estimator": "k2"}
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo, mean over completions, KL as loss": {"loss_aggregation": "sequence_mean", **KL},
    "grpo, normalised and whitened, entropy": {"normalize_rewards": True, "whiten_advantages": "yes", "entropy_coef": 0.1},
    "dr_grpo": {"advantage_estimator": "dr_grpo", "loss_aggregation": "constant"},
    "rloo": {"advantage_estimator": "rloo"},
    "reinforce_pp, KL as reward": {"advantage_estimator": "reinforce_pp", **KL, "kl_in": "reward", "gamma": 0.9},
    "reinforce_pp_baseline": {"advantage_estimator": "reinforce_pp_baseline", **KL},
    "opo": {"advantage_estimator": "opo"},
    "remax": {"advantage_estimator": "remax"},
    "ppo": {"advantage_estimator": "gae", "gamma": 0.9, "lambd": 0.8},
    "dapo": {"eps_clip_high": 0.28, "dual_clip": 3.0},
    "gspo": {"policy_loss": "gspo", "loss_aggregation": "sequence_mean"},
    "gspo_token": {"policy_loss": "gspo_token", "loss_aggregation": "sequence_mean"},
    "cispo": {"policy_loss": "cispo"},
    "cpgd": {"policy_loss": "cpgd", "cpgd": {"drift_coef": 0.2}},
    "gmpo": {"policy_loss": "gmpo", "loss_aggregation": "sequence_mean"},
    "corrected for a mismatch": {"logprob_gap_action": "correct"},
}


def small(seed: int) -> Any:
    return tiny_causal_lm(seed=seed, vocab_size=32, layers=1, hidden=32, heads=1)


def rollout() -> Scored:
    """Ten completions of 1 to 9 tokens, with everything that an update may want."""
    generator = torch.Generator().manual_seed(5)
    model = small(4)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(2, 32, (length,), generator=generator).tolist()

    def noise(length: int, size: float) -> torch.Tensor:
        return size * torch.randn(length, generator=generator)

    pairs = []
    columns: dict[str, list[Any]] = {name: [] for name in ("group_ids", "rewards", "baselines", *BY_TOKEN)}
    for number, size in enumerate(SIZES):
        prompt = ids(1, 5)
        for _ in range(size):
            completion = ids(1, 10)
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].detach()
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
            pairs.append((prompt, completion))
            row = {"group_ids": number, "rewards": float(noise(1, 1.0)), "baselines": 0.25 * number}
            by_token = (
                logprobs + noise(len(completion), 0.3),
                logprobs + noise(len(completion), 0.3),
                1.0 + noise(len(completion), 0.3).clamp(-0.9, 1.0),
                noise(len(completion), 0.5),
            )
            for name, value in (row | dict(zip(BY_TOKEN, by_token, strict=True))).items():
                columns[name].append(value)
    return batch_of(Scored, pairs, **columns)


def models(strategy: StrategyBase, *, critic: bool) -> Models:
    def actor(settings: AdamWSettings) -> tuple[torch.nn.Module, Optimizer]:
        return strategy.prepare_trainable(small(4), optimizer=settings)

    def value_model(settings: AdamWSettings) -> tuple[torch.nn.Module, Optimizer]:
        model: Any = make_critic(small(6))
        head = model.get_output_embeddings()
        with torch.no_grad():  # at its start of zero the head would pass no gradient on
            head.weight.copy_(0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(8)))
        return strategy.prepare_trainable(model, optimizer=settings)

    return Models(actor=actor, critic=value_model if critic else None)


@dataclass(frozen=True)
class Measured:
    """The gradients of the first split, and how far those of each other split are from them."""

    gradients: Tensors
    differences: dict[Split, float]


def measure(backend: dict[str, Any], shown: list[Split]) -> dict[str, Measured]:
    """Every case, on this rank."""
    strategy = get_strategy(make_config({**backend, "max_norm": 0.0, "engine_type": "hf"}))
    found: dict[str, Measured] = {}
    for name, changes in CASES.items():
        config = make_config({**backend, "max_norm": 0.0, "generate_max_len": 16, **changes})
        made = models(strategy, critic=config.advantage_estimator == "gae")
        first, *others = [gradients(rollout(), split, strategy=strategy, config=config, models=made) for split in shown]
        found[name] = Measured(first, {split: difference(other, first) for split, other in zip(shown[1:], others, strict=True)})
    strategy.shutdown()
    return found


@pytest.fixture(scope="module")
def one_process() -> dict[str, Measured]:
    return measure({"strategy": "single"}, [Split("even", 10), Split("even", 1), Split("even", 2), Split("even", 4)])


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Measured]]:
    return run_spmd(
        measure, 2, {"fsdp": True}, [Split("even", 4), Split("even", 2), Split("dealt", 1), Split("one rank", 4)], timeout_s=300.0
    )


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_of_one_process(name: str, one_process: dict[str, Measured]) -> None:
    found = one_process[name]
    assert max(float(tensor.abs().max()) for tensor in found.gradients.values()) > 1e-4, "there is something to learn"
    assert all(far <= BOUND for far in found.differences.values()), found.differences


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(name: str, one_process: dict[str, Measured], two_ranks: list[dict[str, Measured]]) -> None:
    for rank in two_ranks:
        assert difference(rank[name].gradients, one_process[name].gradients) <= BOUND
        assert all(far <= BOUND for far in rank[name].differences.values()), rank[name].differences


def test_every_estimator_and_loss_is_among_the_cases() -> None:
    registry = Registry.discover()
    configs = [make_config(changes) for changes in CASES.values()]
    own = [entry for entry in registry.entries() if entry.provider.distribution == "lightrft"]
    built_in = {kind: {entry.name for entry in own if entry.kind == kind} for kind in ("advantage", "policy_loss")}
    assert built_in["advantage"] == {config.advantage_estimator for config in configs}
    assert built_in["policy_loss"] == {config.policy_loss for config in configs}
