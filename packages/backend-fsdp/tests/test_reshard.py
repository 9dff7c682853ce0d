"""Gathered parameters that are kept for the backward save all-gathers, and never outlive a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.strategy.sharding import reshard
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, accumulate, full_parameters, largest_difference, train

Tensors = dict[str, torch.Tensor]
IDS = torch.arange(20).reshape(1, 20)
BLOCKS = 2


def is_gathered(model: torch.nn.Module) -> list[bool]:
    return [not isinstance(p, DTensor) for p in model.parameters()]


class AllGathers(TorchDispatchMode):
    """Counts them. Not torch's CommDebugMode: its hooks on modules break where transformers' models are run."""

    num_seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_seen += func.namespace == "c10d" and "allgather" in func.__name__
        return func(*args, **(kwargs or {}))


def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def step_of_two(strategy: StrategyBase) -> dict[str, Any]:
    """One step of two micro-batches: the all-gathers, the gradients, and what is left gathered."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    with AllGathers() as seen:
        accumulate(strategy, model, optimizer, 0, num_micro=2)
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    left = any(is_gathered(model))
    with AllGathers() as seen_without, torch.no_grad():
        logits(model)
    return {
        "all-gathers": seen.num_seen,
        "all-gathers without gradients": seen_without.num_seen,
        "gradients": gradients,
        "left gathered": left or any(is_gathered(model)),
    }


def old_and_new(strategy: StrategyBase) -> dict[str, float]:
    """How far the log-probs after a step are from those of a plain model of the new weights, after forwards of every kind before it."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 0)
    with torch.no_grad():
        old = logits(model)
    kept = logits(model)  # with gradients, and no backward
    gathered = all(is_gathered(model))
    norm = strategy.optimizer_step(optimizer, model, None).grad_norm
    plain = tiny_causal_lm(seed=1)
    with torch.no_grad():
        new = logits(model)
        plain.load_state_dict(full_parameters(strategy, model), strict=True)
        expected = logits(plain)
    assert torch.equal(old, kept) and not torch.equal(old, new) and norm > 0.5
    logits(model)
    exported = largest_difference(full_parameters(strategy, model), dict(plain.named_parameters()))
    return {"gathered": gathered, "difference": float((new - expected).abs().max()), "export": exported, "left": any(is_gathered(model))}


def stale(strategy: StrategyBase) -> float:
    """The same where nothing is resharded at the step: what the test above would see."""
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    accumulate(strategy, model, optimizer, 0)
    shards = list(model.parameters())
    old = logits(model)
    with torch.no_grad():
        for shard in shards:
            shard.to_local().add_(1.0)  # type: ignore[attr-defined]
        unchanged = float((logits(model) - old).abs().max())
        reshard(model)
        assert not torch.equal(logits(model), old)
    return unchanged


def trained(strategy: StrategyBase) -> Tensors:
    model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
    train(strategy, model, optimizer, max_norm=0.5)
    return full_parameters(strategy, model)


def measure() -> dict[str, Any]:
    keep = get_strategy(make_config({"fsdp": True, "fsdp_reshard_after_forward": False}))
    again = get_strategy(make_config({"fsdp": True}))
    frozen = keep.prepare_model(tiny_causal_lm())
    logits(frozen)
    return {
        "kept": step_of_two(keep),
        "gathered again": step_of_two(again),
        "new": old_and_new(keep),
        "new, blocks gathered again": old_and_new(again),
        "stale": stale(keep),
        "trained": largest_difference(trained(keep), trained(again)),
        "frozen": any(is_gathered(frozen)),
    }


@pytest.fixture(scope="module", params=[1, 2])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_spmd(measure, request.param)


def test_a_backward_gathers_nothing_again(ranks: list[dict[str, Any]]) -> None:
    """Two micro-batches, over the blocks and the root: once for each forward, and the blocks once more for each backward."""
    for rank in ranks:
        if len(ranks) > 1:  # one rank gathers nothing
            assert rank["kept"]["all-gathers"] == BLOCKS + 1  # once for both micro-batches
            assert rank["gathered again"]["all-gathers"] == 2 * (2 * BLOCKS + 1)
            assert rank["kept"]["all-gathers without gradients"] == BLOCKS + 1


def test_the_numbers_are_the_same(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert largest_difference(rank["kept"]["gradients"], rank["gathered again"]["gradients"], relative=True) < 1e-6
        assert rank["trained"] < 1e-6


def test_nothing_stays_gathered_after_a_backward_or_a_pass_without_gradients(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert not rank["kept"]["left gathered"] and not rank["frozen"]


def test_a_step_and_an_export_reshard_what_had_no_backward(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["new"]["gathered"] and not rank["new, blocks gathered again"]["gathered"]
        for new in (rank["new"], rank["new, blocks gathered again"]):
            assert new["difference"] < 1e-6 and new["export"] == 0 and not new["left"]
        assert rank["stale"] == 0, "without resharding the old weights would have been used"
