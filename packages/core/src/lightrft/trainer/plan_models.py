"""The shapes of a run's models for a plan of its memory: configurations are read, no weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightrft.config.reward_names import model_folder
from lightrft.config.schema import Config
from lightrft.diagnostics.dry_passes import DryModel
from lightrft.diagnostics.memory_plan import Models
from lightrft.errors import ModelError
from lightrft.models.critic import make_critic
from lightrft.models.folder_check import empty_model
from lightrft.models.freeze import freeze
from lightrft.models.lora import add_lora
from lightrft.models.scratch import scratch_config
from lightrft.plugins.registry import Registry
from lightrft.trainer.base_model import scratch_tokenizer
from lightrft.weights.model_class import language_model_class


def shapes_of(config: Config) -> Models:
    """What a plan of the memory needs of a run's models, from their configurations alone.

    Raises:
        ModelError: a model without a configuration.
    """
    trust = config.trust_remote_code
    try:
        shape: Any = (
            scratch_config(
                scratch_tokenizer(config),
                layers=config.scratch_layers,
                hidden=config.scratch_hidden,
                heads=config.scratch_heads,
                kv_heads=config.scratch_kv_heads,
            )
            if config.scratch_tokenizer != "none"
            else AutoConfig.from_pretrained(config.model_name_or_path, trust_remote_code=trust)
        )

        def make() -> Any:
            model = _on_meta(shape, trust)
            if config.lora_rank:
                model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, target_modules=config.lora_target_modules, seed=0)
            if config.freeze:
                freeze(model, config.freeze)
            return model

        actor = DryModel.of(make)
        rewards = {}
        for folder in filter(None, map(model_folder, config.reward)):
            rewarder = empty_model(folder.path, auto_class=AutoModelForSequenceClassification, trust_remote_code=trust)
            rewards[folder.name] = sum(p.numel() for p in rewarder.parameters())
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:300]
        raise ModelError(f"model {config.model_name_or_path!r} has no configuration to plan with: {words}; give a HF folder") from error
    text = shape.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    has_critic = Registry.discover().spec("advantage", config.advantage_estimator).critic
    critic = sum(p.numel() for p in make_critic(_on_meta(deepcopy(shape), trust)).parameters()) if has_critic else None
    kv_elements = 2 * text.num_hidden_layers * heads * width
    return Models(actor=actor, kv_elements=kv_elements, has_critic=has_critic, critic=critic, rewards=rewards)


def _on_meta(shape: Any, trust: bool) -> Any:
    with torch.device("meta"):
        return language_model_class(shape).from_config(shape, trust_remote_code=trust)
