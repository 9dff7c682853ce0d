"""Models get the attention that packed and shared rows need, and show in a few passes that they do not mix sequences."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.batch.images import BlankPrompt
from lightrft.config.schema import Config
from lightrft.models.attention import has_our_attention, use_our_attention
from lightrft.models.image_positions import image_positions
from lightrft.models.packing_check import check_packing
from lightrft.strategy.strategy_base import StrategyBase


def ready_for_rows(model: torch.nn.Module, *, config: Config, strategy: StrategyBase) -> None:
    """Makes `model`, as the strategy prepared it, ready for the rows that the settings ask for; once. Collective.

    A soft cap of the attention asks for ours with padded rows, too: transformers' sdpa drops it.

    Raises:
        ModelError: it cannot have such rows; names the setting.
    """
    inner, setting = strategy.unwrap(model), _setting(config)
    if not (setting or _has_soft_cap(inner)) or has_our_attention(inner):
        return
    use_our_attention(inner, setting=setting or "attn_logit_softcapping")
    if setting:
        device = strategy.world.device
        check_packing(lambda **inputs: _hidden(model, inputs), inner.config, device=device, setting=setting, axis=strategy.mesh.sequence)


def check_image_rows(model: torch.nn.Module, *, config: Config, strategy: StrategyBase, blank: BlankPrompt) -> None:
    """Whether `model`, which is ready for rows, keeps packed rows apart where prompts have images, too. Collective where rows are packed.

    Raises:
        ModelError: it does not; names the setting.
    """
    inner, setting = strategy.unwrap(model), _setting(config)
    if setting:
        check_packing(
            lambda **inputs: _hidden(model, inputs),
            inner.config,
            device=strategy.world.device,
            setting=setting,
            axis=strategy.mesh.sequence,
            blank=blank,
            positions=image_positions(inner),
        )


def _setting(config: Config) -> str:
    """What asks for packed rows; empty where rows are padded."""
    if config.packing_samples:
        return f"packing_samples={config.packing_samples!r}"
    return f"sp_size={config.sp_size}" if config.sp_size > 1 else ""


def _has_soft_cap(model: Any) -> bool:
    config: Any = getattr(model, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def _hidden(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The last hidden states [1, s, H]: of critics, too, whose values start at 0."""
    states: torch.Tensor = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return states
