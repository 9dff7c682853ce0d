"""Whether a target is what its kind asks for. Looked at when it is first loaded, before anything is made of it."""

from __future__ import annotations

import importlib

from lightrft.plugins.specs import PluginSpec

BASES = {
    "strategy": "lightrft.strategy.strategy_base:StrategyBase",
    "engine": "lightrft.engine.base:InferenceEngine",
    "environment": "lightrft.rollout.environment:Environment",
}
"""The class that the target of a kind derives from; targets of other kinds are called and nothing else."""


def problem_with_target(spec: PluginSpec, target: object) -> str:
    """What is wrong with it, in words that follow its name, or an empty string."""
    if spec.kind not in BASES:
        return "" if callable(target) else f"is {target!r}, which cannot be called"
    module, name = BASES[spec.kind].split(":")
    base: type = getattr(importlib.import_module(module), name)
    if not (isinstance(target, type) and issubclass(target, base)):
        return f"is no subclass of {module}.{name}"
    missing = sorted(getattr(target, "__abstractmethods__", ()))
    return f"does not define {', '.join(missing)}, which {name} asks for" if missing else ""
