"""The balance of experts trains the same on sharded models: two ranks of FSDP2 and ZeRO against one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightrft.batch.micro_batch import padded
from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.models.score import score_tokens
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing import run_spmd
from lightrft.testing.architectures import make_model
from lightrft.testing.batches import batch_of
from lightrft.testing.workload import full_parameters, largest_difference

PAIRS = [([3, 4], [12, 13, 14, 1]), ([5, 6, 7], [2]), ([8], [15, 16]), ([9, 10], [3, 3, 3, 3, 3, 3])]
BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "fsdp, recomputed": {"fsdp": True, "gradient_checkpointing": True},
    "zero 2": {"zero_stage": 2},
    "zero 3": {"zero_stage": 3},
}

pytestmark = pytest.mark.long


def trained(settings: dict[str, Any]) -> tuple[dict[str, torch.Tensor], float]:
    """The parameters after three steps of the balance alone, and the balance before."""
    strategy = get_strategy(make_config(settings))
    model, optimizer = strategy.prepare_trainable(make_model("qwen3-moe"), optimizer=AdamWSettings(learning_rate=1e-2))
    batch = batch_of(Sampled, PAIRS, reasons=["stop"] * 4)
    rank, ranks = strategy.world.rank, strategy.world.world_size
    first = 0.0
    for step in range(3):
        seen: list[float] = []

        def loss_share(index: int, seen: list[float] = seen) -> torch.Tensor:
            micro = padded(batch, torch.tensor([index]), device=strategy.world.device)
            found = score_tokens(model, micro, temperatures=(1.0,), router_balance=True)
            seen.append(float(found.balance.detach()))
            return found.balance / len(PAIRS) - 1e-3 * found.logprobs[0].sum()

        strategy.accumulate(list(range(len(PAIRS)))[rank::ranks], loss_share, model, optimizer)
        first = first or strategy.all_reduce(sum(seen), "sum") / len(PAIRS)
        assert not strategy.optimizer_step(optimizer, model, None, "actor", max_norm=0.0).skipped, step
    return full_parameters(strategy, model), first


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_train_the_balance_as_one_process_does(backend: str) -> None:
    [(expected, first)] = run_spmd(trained, 1, {"strategy": "single"})
    assert first > 1.0
    for found, balance in run_spmd(trained, 2, BACKENDS[backend], timeout_s=240):
        assert balance == pytest.approx(first, rel=1e-5)
        assert largest_difference(found, expected) < 3e-4
