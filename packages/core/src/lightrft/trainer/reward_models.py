"""Makes a reward that all ranks ask together of settings or of a prepared model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from lightrft.config.reward_names import ModelFolder
from lightrft.config.schema import Config
from lightrft.data.prompts import Prompt
from lightrft.models.load import load_tokenizer, open_causal_lm
from lightrft.observe.warning_names import Finding
from lightrft.rewards.adapters import refusal
from lightrft.rewards.load import NamedReward, rewards_of
from lightrft.rewards.models.classifier import RewardModel, check_labels, padding_id
from lightrft.rewards.models.template import Rendering
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.rows import text_rows


def build_rewards(config: Config, strategy: StrategyBase) -> list[NamedReward]:
    """All rewards of the settings, in their order; models are loaded and prepared. Collective.

    Raises:
        RewardError, PluginError: as `load_rewards`; a model that gives other than one number.
        ModelError: a model's folder cannot be used.

    Example::

        >>> import lightrft
        >>> config = lightrft.make_config({"strategy": "single", "reward": ["exact_match"]})
        >>> strategy = lightrft.get_strategy(config)
        >>> [reward] = lightrft.build_rewards(config, strategy)
        >>> reward.name
        'exact_match'
        >>> strategy.shutdown()
    """
    return rewards_of(config, registry=strategy.registry, models=lambda folder: load_reward_model(folder, config=config, strategy=strategy))


def load_reward_model(folder: ModelFolder, *, config: Config, strategy: StrategyBase) -> RewardModel:
    """A sequence classifier of a HF folder or hub name, with its own tokenizer, prepared as `reward_shard_size` says. Collective."""
    tokenizer = load_tokenizer(folder.path, trust_remote_code=config.trust_remote_code)
    opened = open_causal_lm(
        folder.path,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        trust_remote_code=config.trust_remote_code,
        auto_class=AutoModelForSequenceClassification,
    )
    if opened.whole_because:
        strategy.print(f"{folder.path}: every rank loads the whole model before it is sharded, because {opened.whole_because}")
    check_labels(opened.model.config, name=folder.name)
    model = strategy.prepare_model(opened.model, shard_size=config.reward_shard_size or None, weights=opened.weights)
    return wrapped(model, name=folder.name, tokenizer=tokenizer, config=config, strategy=strategy)


def wrapped(model: Any, *, name: str, tokenizer: Any, config: Config, strategy: StrategyBase) -> RewardModel:
    """A prepared model as a reward. Collective.

    Raises:
        RewardError: it gives other than one number, or has no token to pad with.
    """
    check_labels(model.config, name=name)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = padding_id(model.config, tokenizer)
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)
    return RewardModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        strategy=strategy,
        rendering=Rendering(input_key=config.input_key, prompt_template=config.prompt_template, chats=config.apply_chat_template),
        rows=text_rows(model, name=name, config=config, strategy=strategy),
        max_len=config.reward_max_len or longest,
    )


def unseen_images(rewards: Sequence[NamedReward], prompts: Sequence[Prompt]) -> Finding | None:
    """The rewards that are models, which read text alone, where prompts have images; None where there are none. Local."""
    blind = [reward.name for reward in rewards if isinstance(reward.function, RewardModel)]
    number = sum(bool(prompt.images) for prompt in prompts)
    if not blind or not number:
        return None
    return "reward_model_reads_text", (
        f"{number} of {len(prompts)} prompts have images, and reward models read text alone ({', '.join(map(repr, blind))}): their scores "
        "say nothing of what the images show; a reward function finds the pictures in sample.images"
    )


def as_rewards(reward_model: Any, *, config: Config, strategy: StrategyBase) -> list[NamedReward]:
    """What the trainer takes as `reward_model`, one or several: NamedRewards as they are, functions and prepared models with weight 1.

    A model is a sequence classifier with one label that `strategy.prepare_model` returned; its tokenizer is that of the folder or hub name
    that it was loaded from.

    Raises:
        ValueError: nothing given, or something that is neither.
        ModelError, RewardError: a model without a tokenizer there, or that gives other than one number.
    """
    given = list(reward_model) if isinstance(reward_model, (list, tuple)) else [reward_model]
    if not given:
        raise ValueError("reward_model is an empty list; give at least one reward function")
    names: dict[str, int] = {}
    rewards = []
    for one in given:
        if isinstance(one, NamedReward):
            rewards.append(one)
            continue
        if not callable(one):
            raise ValueError(f"reward_model={type(one).__name__} is not a function (samples) -> list[float], nor a model")
        if not isinstance(one, torch.nn.Module) and (problem := refusal(one, input_key=config.input_key)):
            raise ValueError(f"reward_model={getattr(one, '__name__', one)!r} {problem}")
        source = str(getattr(getattr(one, "config", None), "_name_or_path", "") or "") if isinstance(one, torch.nn.Module) else ""
        if isinstance(one, torch.nn.Module) and not source:
            raise ValueError(
                f"reward_model={type(one).__name__} is not a function (samples) -> list[float], and a model without the folder that its "
                "tokenizer is in; load it with AutoModelForSequenceClassification.from_pretrained, or wrap it in such a function"
            )
        base = source.rstrip("/").rpartition("/")[2] or str(getattr(one, "__name__", getattr(one, "name", type(one).__name__)))
        names[base] = names.get(base, 0) + 1
        name = base if names[base] == 1 else f"{base}-{names[base]}"
        function = one
        if source:
            tokenizer = load_tokenizer(source, trust_remote_code=config.trust_remote_code)
            function = wrapped(one, name=name, tokenizer=tokenizer, config=config, strategy=strategy)
        rewards.append(NamedReward(name=name, function=function, weight=1.0, may_run_code=config.allow_code_execution))
    return rewards
