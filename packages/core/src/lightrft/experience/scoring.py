"""Columns that models give to finished sequences: log-probs and values in micro-batches, the same number of passes on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightrft.batch.micro_batch import MicroBatch
from lightrft.batch.planning import Batching
from lightrft.batch.stages import Sampled, token_index
from lightrft.distributed.lockstep import lockstep
from lightrft.experience.batching import fused_chunk
from lightrft.models.score import score_tokens, token_values
from lightrft.strategy.strategy_base import StrategyBase

Parts = Sequence[torch.Tensor]
"""Micro-batches: the places int64 [K] of their sequences."""


def score_logprobs(
    model: Any, batch: Sampled, parts: Parts, *, strategy: StrategyBase, batching: Batching, temperatures: tuple[float, ...]
) -> list[torch.Tensor]:
    """The log-prob of each sampled token of `parts` under `model`, float32 [S] on the CPU (0 elsewhere), for each temperature.
    Collective.
    """

    def forward(micro: MicroBatch) -> Sequence[torch.Tensor]:
        return score_tokens(model, micro, temperatures=temperatures, fused_chunk=fused_chunk(strategy.config)).logprobs

    return score_columns(forward, batch, parts, number=len(temperatures), strategy=strategy, batching=batching)


def score_values(critic: Any, batch: Sampled, parts: Parts, *, strategy: StrategyBase, batching: Batching) -> torch.Tensor:
    """The critic's value before each sampled token of `parts`, float32 [S] on the CPU (0 elsewhere). Collective."""
    [values] = score_columns(lambda micro: [token_values(critic, micro)], batch, parts, number=1, strategy=strategy, batching=batching)
    return values


@torch.no_grad()
def score_columns(
    forward: Callable[[MicroBatch], Sequence[torch.Tensor]],
    batch: Sampled,
    parts: Parts,
    *,
    number: int,
    strategy: StrategyBase,
    batching: Batching,
) -> list[torch.Tensor]:
    """`number` columns float32 [S] on the CPU of what `forward` gives at the labels [M] of each of `parts`; no gradients. Collective.

    Nothing waits for the device before the last pass.
    """
    device, nothing = strategy.world.device, torch.zeros(0, dtype=torch.int64)
    found = [forward(batching.micro(batch, part, device=device)) for part in lockstep(parts, empty=nothing, world=strategy.world)]
    if not parts:
        return [torch.zeros(len(batch.token_ids)) for _ in range(number)]
    tokens, _ = token_index(batch.offsets, torch.cat(list(parts)))
    places = tokens[batch.loss_mask[tokens]]
    return [_at(places, torch.cat([columns[i] for columns in found]).cpu(), size=len(batch.token_ids)) for i in range(number)]


def _at(places: torch.Tensor, values: torch.Tensor, *, size: int) -> torch.Tensor:
    out = torch.zeros(size)
    out[places] = values
    return out
