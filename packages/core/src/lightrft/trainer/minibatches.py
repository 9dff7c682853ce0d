"""Which completions does each optimizer step see? Passes over the buffer, cut into mini-batches, and the counts that losses divide by."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightrft.config.schema import Config
from lightrft.experience.trajectory import Trajectory
from lightrft.strategy.strategy_base import StrategyBase


@dataclass(frozen=True)
class Step:
    """This rank's completions of one optimizer step, and what all ranks' together count: tokens, and completions with at least one."""

    rows: list[Trajectory]
    num_tokens: float
    num_sequences: float


def mini_batches(experience: Sequence[Trajectory], *, config: Config, strategy: StrategyBase, seed: int) -> list[Step]:
    """The steps of one rollout, `max_epochs` passes over it. Collective; the same number of steps on every rank.

    A step has `train_batch_size` completions, those of every rank's share, less those that do not train. Where there are several, each
    pass is shuffled first, alike for a seed and rank. Ranks may bring different numbers of completions: each cuts its own evenly.
    """
    size = config.train_batch_size // strategy.world.world_size
    num_steps = max(1, strategy.all_reduce(-(-len(experience) // size), "max"))
    rows: list[list[Trajectory]] = []
    for epoch in range(config.max_epochs):
        items = list(experience)
        if num_steps > 1:
            random.Random(f"{seed}/{strategy.world.rank}" + (f"/{epoch}" if epoch else "")).shuffle(items)
        cuts = [len(items) * index // num_steps for index in range(num_steps + 1)]
        rows += [[t for t in items[start:end] if t.trains] for start, end in zip(cuts, cuts[1:], strict=False)]
    own = [[float(sum(t.num_tokens for t in step)), float(sum(t.num_tokens > 0 for t in step))] for step in rows]
    counts = strategy.all_reduce(torch.tensor(own, dtype=torch.float64), "sum").tolist()
    return [Step(step, tokens, sequences) for step, (tokens, sequences) in zip(rows, counts, strict=True)]
