"""Does a backend learn what one process learns, however the batch is cut? The cases, what is measured, and the bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference

Tensors = dict[str, torch.Tensor]

STEPS = 5

GRADIENT_STEP = AdamWSettings(learning_rate=1e10, betas=(0.0, 0.0), eps=1e6)
"""An eps far above every gradient makes AdamW a plain gradient step, of learning_rate / eps: the gradient can be read off the weights of
any backend.
"""


@dataclass(frozen=True)
class Case:
    """How the batch of each step is cut. Rows and counted tokens differ from rank to rank in all of them."""

    name: str
    num_micro: int
    max_norm: float = 0.0
    empty_rank: bool = False


CASES = (
    Case("accumulation 1", 1),
    Case("accumulation 3", 3),
    Case("one rank empty", 3, empty_rank=True),
    Case("clipping", 3, max_norm=0.5),
)


@dataclass(frozen=True)
class Measured:
    """One case on one rank: gradients of the first step, the norm of each step, parameters after `STEPS` steps of AdamW; all full."""

    gradients: Tensors
    norms: list[float]
    parameters: Tensors


@dataclass(frozen=True)
class Distance:
    """From the oracle: gradients relative to each tensor's largest, norms relative, parameters absolute; the worst of each."""

    gradients: float
    norms: float
    parameters: float

    def within(self, bound: Distance) -> bool:
        """Whether none is beyond its bound; NaN is."""
        return all(mine <= theirs for mine, theirs in zip(asdict(self).values(), asdict(bound).values(), strict=True))


BOUND = Distance(gradients=1e-6, norms=1e-5, parameters=3e-5)
"""In float32."""


def measure(backends: Mapping[str, Mapping[str, Any]], cases: Sequence[Case] = CASES) -> dict[str, dict[str, Measured]]:
    """Every case on every backend (its settings by its name), one after the other. For each rank of `run_spmd`."""
    found = {}
    for name, settings in backends.items():
        strategy = get_strategy(make_config(dict(settings)))
        found[name] = {case.name: _measure(strategy, case) for case in cases}
        strategy.shutdown()
    return found


def distance(found: Measured, expected: Measured) -> Distance:
    """See `Distance`."""
    return Distance(
        gradients=largest_difference(found.gradients, expected.gradients, relative=True),
        norms=float((torch.tensor(found.norms, dtype=torch.float64) / torch.tensor(expected.norms, dtype=torch.float64) - 1).abs().max()),
        parameters=largest_difference(found.parameters, expected.parameters),
    )


def farthest(found: Sequence[Measured], expected: Measured) -> Distance:
    """The worst over ranks."""
    each = torch.tensor([list(asdict(distance(rank, expected)).values()) for rank in found], dtype=torch.float64)
    gradients, norms, parameters = each.amax(dim=0).tolist()  # NaN wins, which Python's max would lose
    return Distance(gradients=gradients, norms=norms, parameters=parameters)


def _measure(strategy: StrategyBase, case: Case) -> Measured:
    start = dict(tiny_causal_lm().named_parameters())
    moved, _ = _train(strategy, case, GRADIENT_STEP, steps=1, max_norm=0.0)
    unit = GRADIENT_STEP.eps / GRADIENT_STEP.learning_rate
    gradients = {name: (start[name].detach() - tensor) * unit for name, tensor in moved.items()}
    parameters, norms = _train(strategy, case, SETTINGS, steps=STEPS, max_norm=case.max_norm)
    return Measured(gradients=gradients, norms=norms, parameters=parameters)


def _train(strategy: StrategyBase, case: Case, settings: AdamWSettings, *, steps: int, max_norm: float) -> tuple[Tensors, list[float]]:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=settings)
    with_rows = max(1, strategy.world.world_size - case.empty_rank)
    norms = []
    for step in range(steps):
        accumulate(strategy, model, optimizer, step, num_micro=case.num_micro, num_ranks_with_rows=with_rows)
        strategy.maybe_load_optimizer(optimizer)
        norms.append(strategy.optimizer_step(optimizer, model, None, max_norm=max_norm).grad_norm)
        strategy.maybe_offload_optimizer(optimizer)
    return full_parameters(strategy, model), norms
