"""Can what was asked be run? A recipe and flags become a configuration; all problems are found before a process starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightrft.cli.flags import Flags
from lightrft.config.checks import check, check_bisect, check_eval, check_invariance
from lightrft.config.eval_files import eval_files
from lightrft.config.load import make_config, read_recipe
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, UserError
from lightrft.plugins.registry import Registry

Mode = Literal["train", "eval", "bisect", "invariance"]
MAKES_MODEL = ("scratch_", "sft_", "resume_from")
"""Settings that make a model, or go on with one. An evaluation or a search takes a recipe as it is and looks at the model that exists; a
check of the update takes a model of random weights as well.
"""


def merge(flags: Flags, *, mode: Mode) -> dict[str, Any]:
    """The recipe's settings, then the flags, which win. Raises ConfigError: the recipe cannot be read."""
    recipe = read_recipe(flags.recipe) if flags.recipe else {}
    left_out = {"train": (), "invariance": ("sft_", "resume_from")}.get(mode, MAKES_MODEL)
    recipe = {name: value for name, value in recipe.items() if not name.startswith(left_out)}
    return recipe | flags.settings


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
    later = [*_cross_checks(config, mode, world_size, typed), *_data(config, mode)]
    # A setting that is wrong in itself was left at its default: what the default then clashes with is not the user's problem.
    found = [*problems, *found, *(line for line in later if not any(name in line for name in bad))]
    if found:
        raise ConfigError(found)
    return config


def _cross_checks(config: Config, mode: Mode, world_size: int, typed: Collection[str]) -> list[str]:
    registry = Registry.discover()
    if mode == "eval":
        return _problems(lambda: check_eval(config, registry=registry, world_size=world_size))
    if mode == "bisect":
        return _problems(lambda: check_bisect(config, registry=registry, world_size=world_size))
    if mode == "invariance":
        return _problems(lambda: check_invariance(config, registry=registry, world_size=world_size))
    return _problems(lambda: check(config, registry=registry, world_size=world_size, typed=typed))


def _data(config: Config, mode: Mode) -> list[str]:
    """Looks into the data files: every row must parse and have the columns."""
    from lightrft.data.rows import load_rows

    columns = [name for name in (config.input_key, config.label_key) if name]
    needed: list[tuple[str, list[str]]] = []
    if mode != "eval":
        imitated = [config.sft_key] if config.sft_steps and config.sft_key else []
        needed.append((config.prompt_data, [*columns, *imitated]))
    if mode not in ("bisect", "invariance") and not _problems(lambda: eval_files(config.eval_data)):
        needed += [(path, columns) for path in eval_files(config.eval_data).values()]
    problems = []
    for path, required in needed:
        if path and Path(path).expanduser().exists():
            problems += _problems(partial(load_rows, path, required=required))
    return problems


def _resume(config: Config, mode: Mode) -> list[str]:
    from lightrft.trainer.resume import check_resume

    return _problems(lambda: check_resume(config)) if config.resume_from and mode == "train" else []


def _problems(look: Callable[[], object]) -> list[str]:
    try:
        look()
    except ConfigError as error:
        return error.problems
    except UserError as error:
        return [str(error)]
    return []
