"""A flag wins over a recipe: what the recipe says besides, and has no effect beside that flag, is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightrft.config.ignored import POINTLESS, Pointless
from lightrft.config.load import make_config
from lightrft.config.schema import Config
from lightrft.errors import ConfigError

STRATEGY_OPTIONS = ("fsdp", "zero_stage", "adam_offload", "fsdp_cpu_offload", "offload_frozen", "fsdp_reshard_after_forward")
"""Of one training backend: a recipe's go with its strategy, where a flag names another."""


def beside_flags(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the settings that the flags leave without effect; what is typed is never left out.

    Example:
        >>> beside_flags({"sft_steps": 9, "sft_batch_size": 4, "seed": 1}, {"sft_steps": "0"})
        {'sft_steps': 9, 'seed': 1}
    """
    lost: set[str] = set(_of_other_strategy(recipe, flags))
    while True:
        settled = {**dict.fromkeys(lost), **flags}
        more = {
            name
            for rule in POINTLESS
            if rule.on in settled and not _reads(rule, settled[rule.on]) and not _unless(rule, recipe, flags)
            for name in rule.fields
            if name in recipe and name not in flags
        } - lost
        if not more:
            return {name: value for name, value in recipe.items() if name not in lost}
        lost |= more


def _of_other_strategy(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """A flag that names the strategy takes the recipe's choice of one with all that belongs to it."""
    chosen = flags.get("strategy") or ("fsdp" if flags.get("fsdp") else "")
    before = recipe.get("strategy") or ("fsdp" if recipe.get("fsdp") else "deepspeed")
    if not chosen or chosen == before:
        return []
    return [name for name in ("strategy", *STRATEGY_OPTIONS) if name in recipe and name not in flags]


def _reads(rule: Pointless, typed: Any) -> bool:
    """Whether the rule's setting has a value that reads the others; None is its default, a wrong one is told elsewhere."""
    try:
        value = getattr(Config() if typed is None else make_config({rule.on: typed}), rule.on)
    except ConfigError:
        return True
    return bool(value in rule.read if rule.read is not None else value)


def _unless(rule: Pointless, recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> bool:
    return bool(rule.unless) and bool((dict(recipe) | dict(flags)).get(rule.unless))
