"""Causal models of many families, experts, a classifier and an image-text model train on every backend as on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.architectures import KINDS, inputs_of, make_model
from lightrft.testing.parity import GRADIENT_STEP
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference

BACKENDS: dict[str, dict[str, Any]] = {"fsdp": {"fsdp": True}, "zero 2": {"zero_stage": 2}, "zero 3": {"zero_stage": 3}}
ROWS, STEPS, MAX_NORM = 4, 3, 0.5


def loss_share(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a loss that needs every parameter: squares of all logits, over the rows of all ranks."""
    return model(**inputs).logits.float().square().mean() / ROWS


def train(strategy: StrategyBase, kind: str, *, first_gradient: bool) -> dict[str, Any]:
    model, optimizer = strategy.prepare_trainable(make_model(kind), optimizer=GRADIENT_STEP if first_gradient else SETTINGS)
    norms = []
    for step in range(1 if first_gradient else STEPS):
        rows = [inputs_of(kind, seed=step * ROWS + row) for row in range(ROWS)][strategy.world.rank :: strategy.world.world_size]
        strategy.accumulate(rows, lambda row: loss_share(model, row), model, optimizer)
        norms.append(strategy.optimizer_step(optimizer, model, None, max_norm=0.0 if first_gradient else MAX_NORM).grad_norm)
    return {"parameters": full_parameters(strategy, model), "norms": norms}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    strategy = get_strategy(make_config(settings))
    out: dict[str, Any] = {}
    for kind in KINDS:
        whole = strategy.world.world_size
        frozen = strategy.prepare_model(make_model(kind), shard_size=whole)
        with torch.no_grad():
            out[f"{kind} frozen"] = float((frozen(**inputs_of(kind)).logits - make_model(kind)(**inputs_of(kind)).logits).abs().max())
        out[f"{kind} gradient"] = train(strategy, kind, first_gradient=True)["parameters"]
        out[kind] = train(strategy, kind, first_gradient=False)
    strategy.shutdown()
    return out


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    return measure({"strategy": "single"})


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fsdp", "zero 3", pytest.param("zero 2", marks=pytest.mark.long)])
def test_every_architecture_trains_as_on_one_process(single: dict[str, Any], backend: str) -> None:
    unit = GRADIENT_STEP.eps / GRADIENT_STEP.learning_rate
    for rank in run_spmd(measure, 2, BACKENDS[backend], timeout_s=300):
        for kind in KINDS:
            start = {name: p.detach() for name, p in make_model(kind).named_parameters()}
            gradients, expected = (
                {name: (start[name] - moved) * unit for name, moved in found[f"{kind} gradient"].items()} for found in (rank, single)
            )
            assert rank[f"{kind} frozen"] <= 1e-6, kind
            assert largest_difference(gradients, expected) <= 1e-6 * max(float(g.abs().max()) for g in expected.values()), kind
            assert rank[kind]["norms"] == pytest.approx(single[kind]["norms"], rel=1e-5), kind
            assert largest_difference(rank[kind]["parameters"], single[kind]["parameters"]) <= 3e-5, kind
            assert all(float(g.abs().max()) > 0 for g in expected.values()), f"{kind}: a parameter that the loss does not need"
