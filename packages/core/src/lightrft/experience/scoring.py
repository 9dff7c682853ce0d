"""What do models say about finished completions? Log-probabilities in micro-batches, the same number of passes on every rank."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.experience.microbatch import even_micro_batches
from lightrft.experience.trajectory import Trajectory, as_token_batch
from lightrft.models.logprobs import token_logprobs
from lightrft.strategy.strategy_base import StrategyBase


@torch.no_grad()
def score_logprobs(
    model: Any, trajectories: list[Trajectory], *, strategy: StrategyBase, micro_batch_size: int, temperature: float
) -> list[torch.Tensor]:
    """Per-token log-probs of each trajectory under `model`, float32 [T] on the CPU, in the order of `trajectories`. Collective."""
    found: dict[int, torch.Tensor] = {}
    for micro_batch in even_micro_batches(trajectories, size=micro_batch_size, strategy=strategy):
        batch = as_token_batch(micro_batch, device=strategy.world.device)
        rows = token_logprobs(model, batch, temperature=temperature).cpu()
        found |= {id(t): row[: t.num_tokens] for t, row in zip(micro_batch, rows, strict=False)}
    return [found[id(t)] for t in trajectories]
