"""The plugin seam: specs, hooks and the registry."""

from lightrft.plugins.api import API_VERSION, OLDEST_API
from lightrft.plugins.hookspecs import hookimpl
from lightrft.plugins.registry import PluginEntry, Registry
from lightrft.plugins.specs import (
    AdvantageSpec,
    Capability,
    EngineSpec,
    EnvironmentSpec,
    LoggerSpec,
    PluginSpec,
    PolicyLossSpec,
    RewardSpec,
    Runtime,
    StrategySpec,
)

__all__ = [
    "API_VERSION",
    "OLDEST_API",
    "AdvantageSpec",
    "Capability",
    "EngineSpec",
    "EnvironmentSpec",
    "LoggerSpec",
    "PluginEntry",
    "PluginSpec",
    "PolicyLossSpec",
    "Registry",
    "RewardSpec",
    "Runtime",
    "StrategySpec",
    "hookimpl",
]
