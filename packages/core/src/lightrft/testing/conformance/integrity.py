"""Whether the kit that ran is still the kit that was imported. Functions and methods that something replaced since, by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

GUARDED = (
    "lightrft.testing.",
    "lightrft.strategy.strategy_base",
    "lightrft.strategy.rollout_facade",
    "lightrft.strategy.hooks",
    "lightrft.strategy.checkpoint",
    "lightrft.strategy.hf_export",
    "lightrft.strategy.factory",
    "lightrft.distributed.collectives",
    "lightrft.weights.checksum",
    "lightrft.rollout.controller",
    "lightrft.rollout.output_checks",
    "lightrft.engine.base",
    "lightrft.engine.checks",
    "lightrft.rollout.setup",
    "lightrft.config.checks",
    "lightrft.config.file_checks",
    "lightrft.config.engine_args",
    "lightrft.plugins.registry",
    "lightrft.plugins.engine_options",
)
"""The kit, and the side of the contracts that is core's and not the plugin's."""

REPLACED = "replaced while the kit ran"

_seen: dict[str, object] = {}


def remember() -> None:
    """Keeps what is there now. Modules that are imported later are kept as `replaced` first sees them."""
    for name, value in _functions():
        _seen.setdefault(name, value)


def replaced() -> list[str]:
    """Dotted names of what is not what it was, or is gone."""
    now = dict(_functions())
    changed = [name for name, value in _seen.items() if now.get(name) is not value]
    remember()
    return sorted({name.removesuffix(".__code__") for name in changed})


def complaint(names: list[str]) -> str:
    """For the author of whatever did that."""
    return (
        f"{REPLACED}: {', '.join(names[:5])} ({len(names)} in all). A plugin overrides hooks of its own; a kit that "
        "was changed verifies nothing"
    )


def _functions() -> Iterator[tuple[str, object]]:
    for module_name, module in sorted(sys.modules.items()):
        if module is None or not module_name.startswith(GUARDED):
            continue
        for name, value in list(vars(module).items()):
            yield from _of(f"{module_name}.{name}", value)
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    yield from _of(f"{module_name}.{name}.{attribute}", member)


def _of(name: str, value: Any) -> Iterator[tuple[str, object]]:
    """A function and its code; what is callable otherwise as it is."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if callable(value):
        yield name, value
    if isinstance(value, FunctionType):
        yield f"{name}.__code__", value.__code__
