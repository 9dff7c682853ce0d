"""Which sequences meet: the optimizer steps of a rollout, and the micro-batches of a step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lightrft.batch.stages import Rewarded, Sampled
from lightrft.distributed.collectives import all_reduce
from lightrft.distributed.world import World


@dataclass(frozen=True)
class Step:
    """The sequences `index` int64 [K] of this rank in one optimizer step, and what all ranks' together count: sampled tokens, and
    sequences with at least one.
    """

    index: torch.Tensor
    num_tokens: float
    num_sequences: float


def by_length(batch: Sampled, index: torch.Tensor, *, size: int) -> list[torch.Tensor]:
    """Parts of at most `size` of the sequences `index` [K], sorted by length so that little is padding."""
    ordered = index[torch.argsort(batch.lengths[index], stable=True)]
    return list(torch.split(ordered, size)) if len(ordered) else []


def mini_batches(batch: Rewarded, *, train_batch_size: int, max_epochs: int, world: World, seed: int) -> list[Step]:
    """The steps of one rollout, `max_epochs` passes over it. Collective; the same number of steps on every rank.

    A step has `train_batch_size` sequences of all ranks, less those that do not train. Where there are several steps, each pass is
    shuffled first, the same for a seed and rank. Ranks may bring different numbers of sequences: each splits its own evenly.
    """
    size = train_batch_size // world.world_size
    most = all_reduce(-(-len(batch) // size), op="max", group=world.group, device=world.device)
    index = [part for epoch in range(max_epochs) for part in _epoch(batch, max(1, most), seed=f"{seed}/{world.rank}", epoch=epoch)]
    sampled = batch.num_sampled
    own = torch.tensor([[float(sampled[i].sum()), float((sampled[i] > 0).sum())] for i in index], dtype=torch.float64)
    counts = all_reduce(own, op="sum", group=world.group, device=world.device).tolist()
    return [Step(step, tokens, sequences) for step, (tokens, sequences) in zip(index, counts, strict=True)]


def _epoch(batch: Rewarded, num_steps: int, *, seed: str, epoch: int) -> Iterator[torch.Tensor]:
    items = list(range(len(batch)))
    if num_steps > 1:
        random.Random(seed + (f"/{epoch}" if epoch else "")).shuffle(items)
    ends = [len(items) * number // num_steps for number in range(num_steps + 1)]
    for start, end in zip(ends, ends[1:], strict=False):
        step = torch.tensor(items[start:end], dtype=torch.int64)
        yield step[batch.trains[step]]
