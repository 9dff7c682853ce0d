"""The strategy that the settings ask for. No torch until one is made."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from lightrft.config.checks import check_strategy, strategy_name
from lightrft.config.load import as_config
from lightrft.config.schema import Config
from lightrft.plugins.registry import Registry

if TYPE_CHECKING:
    from lightrft.strategy.strategy_base import StrategyBase


def get_strategy(args: Config | argparse.Namespace, *, registry: Registry | None = None) -> StrategyBase:
    """Makes the strategy: `args.strategy` by name, else `args.fsdp` gives FSDP, else DeepSpeed. Collective; starts the process group.

    `args` is a Config or a namespace of `add_arguments`.

    Raises:
        ConfigError: the strategy is unknown, not installed, or cannot do what the settings ask.

    Example::

        >>> import lightrft
        >>> strategy = lightrft.get_strategy(lightrft.make_config({"strategy": "single"}))
        >>> strategy.world.world_size
        1
        >>> strategy.shutdown()
    """
    config = as_config(args)
    registry = registry or Registry.discover()
    check_strategy(config, registry=registry, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    name = strategy_name(config)
    strategy: StrategyBase = registry.load("strategy", name)(config, spec=registry.spec("strategy", name), registry=registry)
    return strategy
