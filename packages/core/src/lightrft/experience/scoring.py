"""What do models say about finished completions? Log-probabilities and values in micro-batches, the same number of passes on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightrft.experience.microbatch import even_micro_batches
from lightrft.experience.trajectory import Trajectory, as_token_batch
from lightrft.models.logprobs import TokenBatch, token_logprobs, token_values
from lightrft.strategy.strategy_base import StrategyBase


def score_logprobs(
    model: Any, trajectories: list[Trajectory], *, strategy: StrategyBase, micro_batch_size: int, temperature: float
) -> list[torch.Tensor]:
    """Per-token log-probs of each trajectory under `model`, float32 [T] on the CPU, in the order of `trajectories`. Collective."""
    return _by_token(
        lambda batch: token_logprobs(model, batch, temperature=temperature), trajectories, strategy=strategy, size=micro_batch_size
    )


def score_values(critic: Any, trajectories: list[Trajectory], *, strategy: StrategyBase, micro_batch_size: int) -> list[torch.Tensor]:
    """The critic's value before each token of each trajectory, float32 [T] on the CPU, in the order of `trajectories`. Collective."""
    return _by_token(lambda batch: token_values(critic, batch), trajectories, strategy=strategy, size=micro_batch_size)


@torch.no_grad()
def _by_token(
    forward: Callable[[TokenBatch], torch.Tensor], trajectories: list[Trajectory], *, strategy: StrategyBase, size: int
) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for micro_batch in even_micro_batches(trajectories, size=size, strategy=strategy):
        batch = as_token_batch(micro_batch, device=strategy.world.device)
        rows = forward(batch).cpu()
        found |= {id(t): row[: t.num_tokens] for t, row in zip(micro_batch, rows, strict=False)}
    return [found[id(t)] for t in trajectories]
