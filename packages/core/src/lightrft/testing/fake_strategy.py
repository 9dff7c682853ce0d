"""What a trainer is tested on without a backend. A strategy of one process that writes down what is called, and a registry of fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from lightrft.config.schema import Config
from lightrft.distributed.world import World
from lightrft.plugins import builtin
from lightrft.plugins.registry import PluginEntry, Provider, Registry
from lightrft.plugins.specs import Capability, EngineSpec, PluginSpec, StrategySpec
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.sharded_strategy import SHARDED_STRATEGY
from lightrft.version import __version__

RECORDED = (
    "prepare_model",
    "prepare_trainable",
    "backward",
    "optimizer_step",
    "maybe_load_optimizer",
    "maybe_offload_optimizer",
    "save_ckpt",
    "load_ckpt",
    "save_model",
    "setup_inference_engine",
    "gather_and_generate",
    "update_engine_weights",
    "wakeup_inference_engine",
    "maybe_sleep_inference_engine",
    "shutdown",
)
"""The public methods whose calls a test may look at."""


def _recording(name: str) -> Callable[..., Any]:
    method = getattr(StrategyBase, name)

    @wraps(method)
    def call(self: FakeStrategy, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        return method(self, *args, **kwargs)

    return call


def _record(cls: type[FakeStrategy]) -> type[FakeStrategy]:
    for name in RECORDED:
        setattr(cls, name, _recording(name))
    return cls


@_record
class FakeStrategy(SingleStrategy):
    """Plain torch on the CPU, one rank, any module, no process group. `calls` holds the names of `RECORDED` in the order of their calls."""

    def __init__(self, config: Config, *, spec: StrategySpec, registry: Registry) -> None:
        self.calls: list[str] = []
        super().__init__(config, spec=spec, registry=registry)

    def _join_world(self) -> World:
        return World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), group=None)


FAKE_ENGINE = EngineSpec(
    name="fake",
    target="lightrft.testing.fake_engine:FakeEngine",
    capabilities=frozenset(
        {Capability.SEED, Capability.SLEEP_1, Capability.SLEEP_2, Capability.TENSOR_PARALLEL, Capability.WEIGHT_CHECKSUMS}
    ),
    summary="answers without a model, foretellable",
)

FAKE_STRATEGY = StrategySpec(
    name="fake",
    target="lightrft.testing.fake_strategy:FakeStrategy",
    capabilities=frozenset({Capability.OPTIMIZER_OFFLOAD, Capability.FROZEN_OFFLOAD}),
    summary="one process, plain torch, records its calls",
)

PROVIDER = Provider(distribution="lightrft", version=__version__, entry_point="testing")


def fake_registry(*extra_specs: PluginSpec) -> Registry:
    """What core brings, the strategies `fake` and `sharded`, the engine `fake`, and `extra_specs`; nothing that happens to be installed."""
    return Registry(_entries([*builtin.lightrft_plugins(), FAKE_STRATEGY, SHARDED_STRATEGY, FAKE_ENGINE, *extra_specs]))


def with_fake_engine(registry: Registry) -> Registry:
    """The same, and the engine `fake`, in the place of any other of that name."""
    others = [entry for entry in registry.entries() if (entry.kind, entry.name) != ("engine", "fake")]
    return Registry([*others, *_entries([FAKE_ENGINE])])


def _entries(specs: Sequence[PluginSpec]) -> list[PluginEntry]:
    return [PluginEntry(provider=PROVIDER, spec=spec) for spec in specs]
