"""What a backend learns against what one process learns, however the batch is dealt out: the cases, the measures, the bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightrft.config.load import make_config
from lightrft.models.freeze import freeze
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.tiny import tiny_causal_lm, tiny_lora
from lightrft.testing.workload import SETTINGS, accumulate, largest_difference

Tensors = dict[str, torch.Tensor]

STEPS = 5

GRADIENT_STEP = AdamWSettings(learning_rate=1e10, betas=(0.0, 0.0), eps=1e6)
"""An eps far above every gradient makes AdamW a plain gradient step, of learning_rate / eps: the gradient can be read off the weights of
any backend.
"""


@dataclass(frozen=True)
class Case:
    """How the batch of each step is split. Rows and counted tokens differ from rank to rank in all of them."""

    name: str
    num_micro: int
    max_norm: float = 0.0
    empty_rank: bool = False
    lora: bool = False
    """Only adapters are trained."""

    freeze: str = ""
    """Parameters with a name that this matches are not trained."""

    with_critic: bool = False
    """A second model trains in the same steps, with an optimizer and a clip of its own; both are compared."""

    tie: bool = False
    """Embedding and output layer are one parameter, which gets the gradients of both."""


CASES = (
    Case("accumulation 1", 1),
    Case("accumulation 3", 3),
    Case("one rank empty", 3, empty_rank=True),
    Case("clipping", 3, max_norm=0.5),
    Case("tied weights", 3, max_norm=0.5, tie=True),
    Case("LoRA", 3, max_norm=0.5, lora=True),
    Case("actor and critic", 3, max_norm=0.5, with_critic=True),
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


SEEDS = {"actor": 0, "critic": 1}

BOUND = Distance(gradients=1e-6, norms=1e-5, parameters=3e-5)
"""In float32."""


def measure(backends: Mapping[str, tuple[Mapping[str, Any], Sequence[Case]]]) -> dict[str, dict[str, Measured]]:
    """Each backend's cases (its settings and cases by its name), one after the other. For each rank of `run_spmd`."""
    found = {}
    for name, (settings, cases) in backends.items():
        strategy = get_strategy(make_config(dict(settings)))
        found[name] = {case.name: measure_case(strategy, case) for case in cases}
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


def measure_case(strategy: StrategyBase, case: Case) -> Measured:
    """One case, with a strategy that is there. Collective."""
    models = {role: _model(case, role) for role in _roles(case)}
    start = {f"{role}/{name}": p.detach() for role, model in models.items() for name, p in model.named_parameters() if p.requires_grad}
    moved, _ = _train(strategy, case, GRADIENT_STEP, steps=1, max_norm=0.0)
    unit = GRADIENT_STEP.eps / GRADIENT_STEP.learning_rate
    gradients = {name: (tensor - moved[name]) * unit for name, tensor in start.items()}
    parameters, norms = _train(strategy, case, SETTINGS, steps=STEPS, max_norm=case.max_norm)
    return Measured(gradients=gradients, norms=norms, parameters=parameters)


def _train(strategy: StrategyBase, case: Case, settings: AdamWSettings, *, steps: int, max_norm: float) -> tuple[Tensors, list[float]]:
    models = {role: strategy.prepare_trainable(_model(case, role), optimizer=settings) for role in _roles(case)}
    with_rows = max(1, strategy.world.world_size - case.empty_rank)
    norms = []
    for step in range(steps):
        for index, (model, optimizer) in enumerate(models.values()):  # every backward pass before the first step
            accumulate(strategy, model, optimizer, step + index, num_micro=case.num_micro, num_ranks_with_rows=with_rows)
        for index, (role, (model, optimizer)) in enumerate(models.items()):
            strategy.maybe_load_optimizer(optimizer)
            norms.append(strategy.optimizer_step(optimizer, model, None, role, max_norm=max_norm * (1 + index)).grad_norm)
            strategy.maybe_offload_optimizer(optimizer)
    return {f"{role}/{name}": tensor for role, (model, _) in models.items() for name, tensor in _own(strategy, model).items()}, norms


def _model(case: Case, role: str) -> torch.nn.Module:
    model: torch.nn.Module = tiny_causal_lm(seed=SEEDS[role], tie=case.tie)
    model = tiny_lora(model) if case.lora else model
    if case.freeze:
        freeze(model, case.freeze)
    return model


def _own(strategy: StrategyBase, model: torch.nn.Module) -> Tensors:
    """Every parameter as the backend gives it, adapters beside their matrices."""
    buckets = strategy._export_weights(model, None, 2**30)
    return {weight.names[0]: weight.tensor.detach().cpu().clone() for bucket in buckets for weight in bucket}


def _roles(case: Case) -> list[str]:
    return list(SEEDS) if case.with_critic else list(SEEDS)[:1]
