"""`engine_args`: from recipes and flags, and checked against the options that the engine's plugin lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import yaml

from lightrft.config.schema import Config
from lightrft.config.yaml_text import load_yaml
from lightrft.errors import PluginBrokenError
from lightrft.plugins.engine_options import EngineOptions
from lightrft.plugins.specs import EngineSpec

NAME = "engine_args"
PREFIX = f"{NAME}."


def folded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the form `engine_args.NAME` put into `engine_args`, over what it says itself. Their text is read as YAML.

    Example:
        >>> folded({"seed": 1, "engine_args": {"a": 1, "b": 2}, "engine_args.b": "true"})
        {'seed': 1, 'engine_args': {'a': 1, 'b': True}}
    """
    dotted = {name.removeprefix(PREFIX): _value(value) for name, value in values.items() if name.startswith(PREFIX)}
    rest = {name: value for name, value in values.items() if not name.startswith(PREFIX)}
    whole = rest.get(NAME) or {}
    if isinstance(whole, str) and dotted:
        try:
            whole = json.loads(whole)
        except ValueError:
            return rest  # told where the setting is read
    return rest | {NAME: {**whole, **dotted}} if dotted and isinstance(whole, Mapping) else rest


def taken(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words of a command line without those of the form `--engine_args.NAME VALUE` or `--engine_args.NAME=VALUE`, and these, by their
    dotted names. A last one without a value stays.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    ahead = iter(range(len(words)))
    for at in ahead:
        name, equals, value = words[at].partition("=")
        option = name[2:].replace("-", "_")
        if not (name.startswith("--") and option.startswith(PREFIX)) or (not equals and at + 1 == len(words)):
            rest.append(words[at])
            continue
        found[option] = value if equals else words[next(ahead)]
    return rest, found


def option_problems(config: Config, spec: EngineSpec) -> Iterator[str]:
    """One line for each of `engine_args` that engine `spec` does not take."""
    if not config.engine_args:
        return
    if not spec.options:
        yield f"engine_args={config.engine_args!r} has no effect: engine {spec.name!r} has no library with options; leave engine_args out"
        return
    try:
        options = options_of(spec)
    except PluginBrokenError as error:
        yield str(error)
        return
    yield from options.problems(config.engine_args, engine=spec.name)


def options_of(spec: EngineSpec) -> EngineOptions:
    """Calls the function that a spec names. Raises PluginBrokenError: it cannot be imported, raises, or returns something else."""
    module, _, name = spec.options.partition(":")
    what = f"engine {spec.name!r}: its options {spec.options!r}"
    try:
        found = getattr(import_module(module), name)()
    except Exception as error:  # whatever the plugin's function raises
        raise PluginBrokenError(f"{what} cannot be listed: {type(error).__name__}: {error}") from error
    if not isinstance(found, EngineOptions):
        raise PluginBrokenError(f"{what} are {found!r:.80}, not EngineOptions")
    return found


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return load_yaml(value)
    except yaml.YAMLError:
        return value
