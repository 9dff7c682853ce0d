"""A recipe as a check of its own update: its model, engine and algorithm, and one recorded rollout, partitioned several ways."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightrft.batch.exchange import gathered
from lightrft.batch.stages import Scored
from lightrft.config.loss_settings import first_ratio_limit, loss_settings
from lightrft.config.schema import Config
from lightrft.experience.pipeline import ExperienceMaker
from lightrft.models.load import load_tokenizer
from lightrft.plugins.registry import Registry
from lightrft.rewards.load import NamedReward
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.base_model import prepare_base_model
from lightrft.trainer.build import build_actor, build_critic, build_initial_model, read_prompts
from lightrft.trainer.invariance import Models, difference, first_step, gradients, splits
from lightrft.trainer.run import admit, share_base_model
from lightrft.types import Sample

NUM_PROMPTS, NUM_SAMPLES = 8, 4
"""Of the recorded rollout, over all ranks, and of each prompt, at most."""
BOUND, BF16_BOUND = 1e-5, 3e-2
"""Float32 rounds by 1e-6 in a small model, and by more in a deep one; a wrong denominator shows in the second digit."""
SHIFT = 0.3
"""Old log-probs are moved by up to this, so that ratios are not all 1 and clips bite as they do in a run's later steps."""


def check_invariance(config: Config, *, registry: Registry | None = None) -> dict[str, Any]:
    """The differences as plain data, the same on every rank. Every rank of the world calls it; nothing is kept."""
    config = config.model_copy(
        update={"max_norm": 0.0, "verify_sync_every": 0, "n_samples_per_prompt": min(config.n_samples_per_prompt, NUM_SAMPLES)}
    )
    strategy = get_strategy(config, registry=registry)
    admit(config, strategy, mode="invariance")
    # One step over the whole rollout, twice: the second pass asks for old log-probs.
    config = config.model_copy(update={"train_batch_size": NUM_PROMPTS * NUM_SAMPLES * strategy.world.world_size, "max_epochs": 2})
    with tempfile.TemporaryDirectory(prefix="lightrft-invariance-") as folder:
        make = partial(prepare_base_model, config, folder=Path(folder), registry=strategy.registry, log=strategy.print)
        path = share_base_model(strategy, make)
        strategy.setup_inference_engine(config, engine_type=config.engine_type, model_path=path)
        mine = _recorded(config, strategy, model_path=path)
        batch = _shifted(gathered(mine, group=strategy.world.group))
        strategy.shutdown_inference_engine()
        make_critic = partial(build_critic, config, strategy, model_path=path) if _has_critic(config, strategy) else None
        models = Models(actor=partial(build_actor, config, strategy, model_path=path), critic=make_critic)
        rows = _rows(batch, config=config, strategy=strategy, models=models)
        on_policy = first_step(mine, strategy=strategy, config=config, models=models)
        strategy.all_reduce(0, "sum")  # rank 0's folder stays until every rank has read it
    bound = BF16_BOUND if config.bf16 else BOUND
    spec = strategy.registry.spec("policy_loss", config.policy_loss)
    found = {
        "advantage_estimator": config.advantage_estimator,
        "policy_loss": config.policy_loss,
        "loss_aggregation": loss_settings(config, spec).loss_aggregation,
        "world_size": strategy.world.world_size,
        "completions": len(batch),
        "tokens": int(batch.num_sampled.sum()),
        "bound": bound,
        "splits": rows,
        "invariant": all(row["difference"] <= bound for row in rows),
        "first_ratio_error": on_policy["train/first_ratio_error"],
        "first_clip_fraction": on_policy["train/clip_fraction"],
        "on_policy": on_policy["train/first_ratio_error"] <= first_ratio_limit(config, spec),
    }
    strategy.shutdown()
    return found


def _rows(batch: Scored, *, config: Config, strategy: StrategyBase, models: Models) -> list[dict[str, Any]]:
    """Each split and its distance from the first one."""
    first, *others = splits(config, world_size=strategy.world.world_size)
    expected = gradients(batch, first, strategy=strategy, config=config, models=models)
    rows = [{"ranks": first.spread, "micro_train_batch_size": first.micro, "difference": 0.0}]
    for split in others:
        found = gradients(batch, split, strategy=strategy, config=config, models=models)
        rows.append({"ranks": split.spread, "micro_train_batch_size": split.micro, "difference": difference(found, expected)})
    return rows


def _recorded(config: Config, strategy: StrategyBase, *, model_path: str) -> Scored:
    """This rank's slice of one rollout, with all that the update reads. Rewards are made up: a model that earns one reward for everything
    would have no advantages, and any two updates of nothing agree.
    """
    tokenizer = load_tokenizer(model_path, trust_remote_code=config.trust_remote_code)
    prompts = read_prompts(config, config.prompt_data, tokenizer=tokenizer, strategy=strategy, limit=NUM_PROMPTS).prompts
    actor, _ = build_actor(config, strategy, model_path=model_path)
    maker = ExperienceMaker(
        strategy=strategy,
        config=config,
        tokenizer=tokenizer,
        actor=actor,
        initial_model=build_initial_model(config, strategy, model_path=model_path),
        rewards=[NamedReward(name="made_up", function=_made_up)],
        advantage_estimator=strategy.registry.load("advantage", config.advantage_estimator),
        critic=build_critic(config, strategy, model_path=model_path)[0] if _has_critic(config, strategy) else None,
        greedy=strategy.registry.spec("advantage", config.advantage_estimator).greedy,
    )
    return maker.score(maker.reward(maker.generate(prompts[strategy.world.rank :: strategy.world.world_size])), seed=config.seed)


def _shifted(batch: Scored) -> Scored:
    """Groups numbered from 0, and old log-probs a little off."""
    noise = torch.rand(len(batch.token_ids), generator=torch.Generator().manual_seed(0))
    old = torch.where(batch.loss_mask, batch.old_logprobs + SHIFT * (2 * noise - 1), 0.0)
    return replace(batch, group_ids=torch.unique(batch.group_ids, return_inverse=True)[1], old_logprobs=old)


def _made_up(samples: Sequence[Sample]) -> list[float]:
    """Numbers from 0 to 1 that differ with the text."""
    return [hashlib.sha256(sample.completion.encode()).digest()[0] / 255.0 for sample in samples]


def _has_critic(config: Config, strategy: StrategyBase) -> bool:
    critic: bool = strategy.registry.spec("advantage", config.advantage_estimator).critic
    return critic
