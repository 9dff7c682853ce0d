"""A recipe and flags become a configuration; all problems are found before a process starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightrft.cli.flags import Flags
from lightrft.config.load import make_config, read_recipe
from lightrft.config.over_recipe import beside_flags
from lightrft.config.schema import Config
from lightrft.distributed.launch import under_torchrun
from lightrft.errors import ConfigError, Problem, RewardError
from lightrft.plugins.registry import Registry
from lightrft.rewards.trial import tried_apart
from lightrft.trainer.preflight import Mode, preflight_problems

MAKES_MODEL = ("scratch_", "sft_", "resume_from")
"""Settings that make a model, or go on with one. An evaluation or a search takes a recipe as it is and looks at the model that exists; a
check of the update takes a model of random weights as well.
"""


def merge(flags: Flags, *, mode: Mode) -> dict[str, Any]:
    """The recipe's settings, then the flags, which win (see `beside_flags`). Raises ConfigError: the recipe cannot be read."""
    recipe = read_recipe(flags.recipe) if flags.recipe else {}
    left_out = {"train": (), "invariance": ("sft_", "resume_from"), "prompts": ("resume_from",)}.get(mode, MAKES_MODEL)
    recipe = {name: value for name, value in recipe.items() if not name.startswith(left_out)}
    return beside_flags(recipe, flags.settings) | flags.settings


def typed_alone(flags: Flags) -> frozenset[str]:
    """The settings that were typed and that the recipe does not set: over a recipe, a default only takes back what it says."""
    return frozenset(flags.settings) - frozenset(read_recipe(flags.recipe) if flags.recipe else ())


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that are valid one by one, and a problem for each that is not."""
    good: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        try:
            make_config({name: value})
            good[name] = value
        except ConfigError as error:
            problems += error.problems
    return good, problems


def checked(values: Mapping[str, Any], *, problems: list[str], mode: Mode, world_size: int, typed: Collection[str] = ()) -> Config:
    """The configuration, when nothing is wrong with it. `typed`: see `check`.

    Raises:
        ConfigError: every problem of the settings, together with those found before (`problems`).
    """
    good, found = split(values)
    config = make_config(good)
    bad = set(values) - set(good)
    later = _problems(config, mode, world_size, typed)
    # A setting that is wrong in itself was left at its default: what the default then clashes with is not the user's problem.
    found = [*problems, *found, *(line for line in later if not any(name in line for name in bad))]
    if found:
        raise ConfigError(found)
    return config


def _problems(config: Config, mode: Mode, world_size: int, typed: Collection[str]) -> list[str]:
    """What speaks against the job; rewards are loaded where nothing else does, in a process of their own."""
    found = preflight_problems(config, mode=mode, registry=Registry.discover(), world_size=world_size, typed=typed)
    if found or mode not in ("train", "eval") or under_torchrun():
        return found
    from lightrft.trainer.data_checks import columns_asked_for  # which reads data

    return Problem.each(tried_apart(config, columns=columns_asked_for(config, training=mode == "train")), of=RewardError)
