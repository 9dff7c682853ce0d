"""Makes a `Config` of a recipe, flags and a parser's result. All problems are reported at once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lightrft.config.engine_args import folded
from lightrft.config.other_names import named_here
from lightrft.config.schema import Config
from lightrft.config.sections import Sections, installed_sections, may_be_section, read_sections
from lightrft.config.yaml_text import load_yaml
from lightrft.errors import ConfigError, nearest
from lightrft.types import REFUSED_SAMPLING

MOST_CHARACTERS = 1 << 22
"""Of a recipe."""


def make_config(values: Mapping[str, Any], *, sections: Sections | None = None) -> Config:
    """Validates settings. Settings of a plugin are a mapping under its name, or `NAME.SETTING`; `sections` are those that plugins bring
    (None: the installed ones).

    Raises:
        ConfigError: a line for each unknown key, wrong type or value out of range.

    Example::

        >>> import lightrft
        >>> lightrft.make_config({"strategy": "single", "n_samples_per_prompt": 4}).n_samples_per_prompt
        4
    """
    values = folded(values)
    plain = {k: v for k, v in values.items() if k in Config.model_fields or not may_be_section(k, v)}
    given = {k: v for k, v in values.items() if k not in plain}
    problems: list[str] = []
    by_name = plain.pop("plugins", None) or {}
    if not isinstance(by_name, Mapping):
        plain["plugins"] = by_name  # told below
    elif given := given | {str(name): value for name, value in by_name.items()}:
        plain["plugins"], problems = read_sections(given, installed_sections() if sections is None else sections)
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError([*(_problem(e) for e in error.errors()), *problems]) from None
    if problems:
        raise ConfigError(problems)
    return config


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A YAML recipe as a mapping. Raises ConfigError: missing file, malformed YAML (line), not a mapping."""
    path = Path(path).expanduser()
    try:
        text = _text(path)
        values = load_yaml(text)
    except OSError as error:
        raise ConfigError([f"config {str(path)!r}: {error.strerror or error}; give the path of a YAML file"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"config {str(path)!r} is not YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"config {str(path)!r}: found a {type(values).__name__}, expected lines of the form `key: value`"])
    _no_key_twice(path, text)
    return {str(key): value for key, value in values.items()}


def _text(path: Path) -> str:
    """All of it; a named pipe, to which nobody may ever write, and a device without an end are ConfigErrors."""
    if path.is_fifo() and Path("/proc") not in path.resolve().parents:  # those of a shell's <(...) have a writer
        raise ConfigError([f"config {str(path)!r} is a named pipe, which may have no writer; give the path of a YAML file"])
    with path.open(encoding="utf-8") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise ConfigError([f"config {str(path)!r} is longer than {MOST_CHARACTERS} characters; give the path of a YAML file"])
    return text


def _no_key_twice(path: Path, text: str) -> None:
    # the YAML library lets the last one win without a word
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    lines: dict[str, int] = {}
    problems = []
    for key, _ in node.value:
        here = key.start_mark.line + 1
        if key.value in lines:
            problems.append(
                f"config {str(path)!r}: key {key.value!r} stands on line {lines[key.value]} and again on line {here}; remove one"
            )
        lines[key.value] = here
    if problems:
        raise ConfigError(problems)


def as_config(args: Config | argparse.Namespace) -> Config:
    """What the guide's functions take as `args`: a Config as it is, or a namespace of `add_arguments`.

    A namespace may hold more (the caller's own flags) or less (defaults fill in). A value equal to its default counts as not set.
    """
    if isinstance(args, Config):
        return args
    known = Config.model_fields
    given = {k: v for k, v in vars(args).items() if k in known and v != known[k].default}
    of_plugins = {k: v for k, v in vars(args).items() if "." in k and v is not None}
    return make_config(given | of_plugins)


def _problem(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden" and key in REFUSED_SAMPLING:
        return f"{key}={error['input']!r} is not available: {REFUSED_SAMPLING[key]}"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{named_here(key) or nearest(key, Config.model_fields)} (`lightrft train --help` lists all)"
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
