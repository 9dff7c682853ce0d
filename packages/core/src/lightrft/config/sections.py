"""Settings of plugins: `acme: {strength: 2}` in a recipe, `--acme.strength 2` on the command line; validated by the plugin's own model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from lightrft.config.other_names import named_here
from lightrft.config.schema import Config
from lightrft.errors import PluginBrokenError, nearest
from lightrft.plugins.registry import Registry
from lightrft.plugins.settings import PluginSettings
from lightrft.plugins.specs import PluginSpec

Sections = Mapping[str, type[PluginSettings]]
CHOSEN_BY = {"advantage": "advantage_estimator", "policy_loss": "policy_loss", "engine": "engine_type"}
"""The setting that names the plugin of a kind, where one is chosen."""


def installed_sections(registry: Registry | None = None) -> dict[str, type[PluginSettings]]:
    """The settings model of each usable plugin that brings one, by the plugin's name. Raises PluginBrokenError as `model_of`."""
    specs = (entry.spec for entry in (registry or Registry.discover()).entries() if entry.state == "ok")
    return {spec.name: model_of(spec) for spec in specs if spec is not None and spec.settings}


def model_of(spec: PluginSpec) -> type[PluginSettings]:
    """Imports the settings model that a spec names.

    Raises:
        PluginBrokenError: it cannot be imported, or is no subclass of PluginSettings.
    """
    module, _, name = spec.settings.partition(":")
    what = f"{spec.kind} {spec.name!r}: its settings {spec.settings!r}"
    try:
        model = getattr(import_module(module), name)
    except Exception as error:  # whatever the plugin's module raises
        raise PluginBrokenError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(model, type) and issubclass(model, PluginSettings)):
        raise PluginBrokenError(f"{what} are {model!r}, not a subclass of PluginSettings")
    return model


def settings_of(config: Config, spec: PluginSpec) -> Any:
    """The settings of a plugin, with its defaults; None for one that brings none."""
    return model_of(spec)(**config.plugins.get(spec.name, {})) if spec.settings else None


def may_be_section(name: str, value: Any) -> bool:
    """Whether a key that is no setting of core can be a plugin's: a mapping, or a name with a dot."""
    return isinstance(value, Mapping) or "." in name


def read_sections(values: Mapping[str, Any], sections: Sections) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What recipes and flags say of plugins, by the plugin's name, and a line for each problem. Flags, which have dots, win."""
    given: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for key, value in sorted(values.items(), key=lambda item: "." in item[0]):
        name, dot, field = key.partition(".")
        if name not in sections:
            if answer := named_here(key):
                problems.append(f"unknown key {key!r}{answer}")
                continue
            hint = nearest(name, [*sections, *Config.model_fields])
            problems.append(f"unknown key {key!r}{hint}; no installed plugin {name!r} has settings")
            continue
        if not dot and not isinstance(value, Mapping):
            problems.append(f"{name}={value!r}: expected lines of the form `setting: value`, the settings of plugin {name!r}")
            continue
        given.setdefault(name, {}).update({field: value} if dot else {str(one): what for one, what in value.items()})
    for name, found in given.items():
        problems += _problems(name, found, sections[name])
    return given, problems


def flags_of(sections: Sections) -> Iterator[tuple[str, str, str]]:
    """(flag without dashes, plugin, help) of each plugin's settings."""
    for name, model in sections.items():
        for field, info in model.model_fields.items():
            yield f"{name}.{field}", name, f"{info.description} (default: {info.default!r})"


def unread_sections(config: Config, registry: Registry) -> Iterator[str]:
    """One line for each setting of a plugin that this configuration does not use."""
    for kind, field in CHOSEN_BY.items():
        for entry in registry.entries(kind):
            chosen = getattr(config, field)
            if entry.spec is None or not entry.spec.settings or entry.name == chosen:
                continue
            for name, value in config.plugins.get(entry.name, {}).items():
                if value != model_of(entry.spec).model_fields[name].default:
                    remedy = f"set {field} to {entry.name}, or leave it out"
                    yield f"{entry.name}.{name}={value!r} has no effect with {field}={chosen!r}; {remedy}"


def _problems(name: str, values: Mapping[str, Any], model: type[PluginSettings]) -> list[str]:
    try:
        model(**values)
    except ValidationError as error:
        return [_problem(name, one, model) for one in error.errors()]
    return []


def _problem(name: str, error: Any, model: type[PluginSettings]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}.{key}'{nearest(key, model.model_fields)} (it has: {', '.join(model.model_fields)})"
    return f"{name}.{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
