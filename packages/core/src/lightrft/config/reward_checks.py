"""Can these rewards be had? What the settings say of them, before any is imported or asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightrft.config.schema import Config
from lightrft.errors import PluginError
from lightrft.plugins.registry import Registry


def check_rewards(config: Config, *, registry: Registry) -> Iterator[str]:
    """One line for each problem of the reward settings."""
    if not config.reward:
        yield "reward is empty; name at least one (`lightrft plugins` lists them)"
    if config.reward_weights and len(config.reward_weights) != len(config.reward):
        rewards = f"{len(config.reward)} rewards ({', '.join(config.reward)})"
        yield f"reward_weights has {len(config.reward_weights)} numbers for {rewards}; give one each"
    for reward in config.reward:
        yield from _one(reward, registry)


def _one(reward: str, registry: Registry) -> Iterator[str]:
    if ":" not in reward:
        try:
            registry.entry("reward", reward)
        except PluginError as error:
            yield str(error)
        return
    path, _, function = reward.rpartition(":")
    if path.endswith(".py") and not Path(path).expanduser().is_file():
        yield f"reward={reward!r}: no such file {path!r}; the form is path/to/file.py:function"
    elif not (path and function):
        yield f"reward={reward!r} is not of the form module:function or path/to/file.py:function"
