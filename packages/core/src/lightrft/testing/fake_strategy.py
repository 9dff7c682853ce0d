"""What can a trainer be tested on without a backend? A strategy of one process that writes down what is called, and a registry of fakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

import torch

import lightrft
from lightrft.config.schema import Config
from lightrft.distributed.world import World
from lightrft.plugins import builtin
from lightrft.plugins.registry import PluginEntry, Provider, Registry
from lightrft.plugins.specs import Capability, EngineSpec, PluginSpec, StrategySpec
from lightrft.strategy.single import SingleStrategy
from lightrft.strategy.strategy_base import Optimizer, StrategyBase

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

    def _move_optimizer_state(self, optimizer: Optimizer, to: Literal["cpu", "device"]) -> None:
        """There is one kind of memory here; the tensors are replaced, as a real move would."""
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    state[name] = value.clone()


def fake_registry(*extra_specs: PluginSpec) -> Registry:
    """What core brings, the strategy and the engine `fake`, and `extra_specs`; nothing that happens to be installed."""
    fakes: list[PluginSpec] = [
        StrategySpec(
            name="fake",
            target="lightrft.testing.fake_strategy:FakeStrategy",
            capabilities=frozenset({Capability.OPTIMIZER_OFFLOAD}),
            summary="one process, plain torch, records its calls",
        ),
        EngineSpec(
            name="fake",
            target="lightrft.testing.fake_engine:FakeEngine",
            capabilities=frozenset(
                {Capability.SEED, Capability.SLEEP_1, Capability.SLEEP_2, Capability.TENSOR_PARALLEL, Capability.WEIGHT_SUMS}
            ),
            summary="answers without a model, foretellable",
        ),
    ]
    provider = Provider(distribution="lightrft", version=lightrft.__version__, entry_point="testing")
    return Registry(PluginEntry(provider=provider, spec=spec) for spec in [*builtin.lightrft_plugins(), *fakes, *extra_specs])
