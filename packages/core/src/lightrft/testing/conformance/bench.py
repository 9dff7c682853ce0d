"""What a check of a strategy stands on, on each rank: the plugin by name, its settings, tiny models, and the oracle's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, StrategySpec
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, Optimizer, StrategyBase
from lightrft.testing.parity import GRADIENT_STEP, Case, Measured, measure_case
from lightrft.testing.workload import full_parameters

MakeRegistry = Callable[[], Registry]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """Which strategy is asked, found where, with which settings of its own. Travels to the ranks."""

    name: str
    make_registry: MakeRegistry
    settings: Mapping[str, Any] = field(default_factory=dict)


class StrategyBench:
    """One rank's. `folder` is shared by all ranks; `oracle` holds the cases of `parity` as one process measured them."""

    def __init__(self, subject: Subject, folder: Path, oracle: Mapping[str, Measured]) -> None:
        self.subject = subject
        self.registry = subject.make_registry()
        self.spec: StrategySpec = self.registry.spec("strategy", subject.name)
        self.folder = folder
        self.oracle = oracle
        self._strategy: StrategyBase | None = None

    @property
    def strategy(self) -> StrategyBase:
        """One for all checks that need no other settings."""
        if self._strategy is None:
            self._strategy = self.start()
        return self._strategy

    def forget(self) -> None:
        """The next check starts a strategy of its own: one that failed half-way may be in any state."""
        self._strategy = None

    @property
    def rank(self) -> int:
        return self.strategy.world.rank

    @property
    def world_size(self) -> int:
        return self.strategy.world.world_size

    @property
    def is_last(self) -> bool:
        return self.rank == self.world_size - 1

    def start(self, registry: Registry | None = None, **settings: Any) -> StrategyBase:
        """Another strategy in the same world."""
        config = make_config({"strategy": self.subject.name, **self.subject.settings, **settings})
        return get_strategy(config, registry=registry or self.registry)

    def can(self, capability: Capability) -> bool:
        return capability in self.spec.capabilities

    def line(self, settings: AdamWSettings, *, strategy: StrategyBase | None = None) -> Line:
        """A prepared `Line` and its optimizer, of a strategy of its own or of that of all checks."""
        strategy = strategy or self.strategy
        model, optimizer = strategy.prepare_trainable(LineModel(), optimizer=settings)
        return Line(strategy, model, optimizer)

    def measure(self, case: Case, **settings: Any) -> Measured:
        """A case of `parity`, under the plugin's settings or others."""
        return measure_case(self.start(**settings) if settings else self.strategy, case)


class LineModel(torch.nn.Module):
    """y = w x, with w = 2. A list of one layer, so that a backend that shards blocks finds one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False)])
        torch.nn.init.constant_(self.layers[0].weight, 2.0)  # type: ignore[arg-type]  # a ModuleList does not know its classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers[0](x)
        return out


POINTS = ((1.0, 1.0), (2.0, 1.0), (3.0, 4.0))
"""(x, y). Residuals w x - y at w = 2 are 1, 3, 2; times x: 1, 6, 6."""


def line_gradient(weight: float) -> float:
    """Of half the squared residuals over three points: (14 w - 15) / 3, at 2: 13 / 3."""
    return sum((weight * x - y) * x for x, y in POINTS) / len(POINTS)


@dataclass(frozen=True)
class Line:
    """A line that is fitted to three points, of which the first rank has one and the last the others; numbers by hand."""

    strategy: StrategyBase
    model: torch.nn.Module
    optimizer: Optimizer

    def loss_share(self, points: tuple[tuple[float, float], ...]) -> torch.Tensor:
        """This rank's loss share: of nothing it is worth 0, and still goes through the model."""
        device = self.strategy.world.device
        x = torch.tensor([[x] for x, _ in points] or [[0.0]], device=device)
        y = torch.tensor([[y] for _, y in points] or [[0.0]], device=device)
        loss_share: torch.Tensor = (self.model(x) - y).square().sum() / 2 / len(POINTS)
        return loss_share

    def backward(self, factor: float = 1.0) -> None:
        """All points in one micro-batch of each rank."""
        first, rest = POINTS[:1], POINTS[1:]
        world = self.strategy.world
        mine = (first if world.rank == 0 else ()) + (rest if world.rank == world.world_size - 1 else ())
        self.strategy.backward(self.loss_share(mine) * factor, self.model, self.optimizer)

    def backward_in_two(self) -> None:
        """The first point in one micro-batch, the others in the next; all of the last rank."""
        last = self.strategy.world.rank == self.strategy.world.world_size - 1
        for points, final in ((POINTS[:1], False), (POINTS[1:], True)):
            self.strategy.backward(self.loss_share(points if last else ()), self.model, self.optimizer, final=final)

    @property
    def stepped_with(self) -> float:
        """The gradient of a first step under `GRADIENT_STEP`, read off the weight. Collective."""
        return (2.0 - self.weight) * GRADIENT_STEP.eps / GRADIENT_STEP.learning_rate

    @property
    def weight(self) -> float:
        """Collective."""
        return full_parameters(self.strategy, self.model)["layers.0.weight"].item()


def close(found: float, expected: float, *, rel: float = 1e-5) -> bool:
    """Not so for NaN."""
    return abs(found - expected) <= rel * max(abs(expected), 1e-6)
