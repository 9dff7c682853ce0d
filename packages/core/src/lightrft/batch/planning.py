"""Which sequences meet: the optimizer steps of a rollout, the rank that works on each sequence, and the micro-batches of a step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightrft.batch.dealing import Dealing
from lightrft.batch.images import BlankPrompt, Positions
from lightrft.batch.label_parts import ALONE
from lightrft.batch.micro_batch import MicroBatch, packed, padded
from lightrft.batch.stages import Rewarded, Sampled
from lightrft.distributed.collectives import gather_ragged
from lightrft.distributed.mesh import Axis


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How a rollout is partitioned.

    A step has `train_batch_size` sequences of all ranks together, less those that do not train; `max_epochs` passes are made over the
    rollout. A micro-batch has at most `micro_batch_size` sequences, a padded row for each of their contexts; or, with a `token_budget`
    above 0, one packed row of at most so many tokens (a longer sequence goes alone). With `balance` sequences change their rank so that
    every rank has about the same work in each step: tokens, and their attention, which costs as much as the rest for a sequence of
    `attention_length` tokens.

    The ranks of `sequence` share each row, which then is a packed one without a budget as well. `blank` is there where prompts may have
    images; a packed row without any has it beside its sequences, for whose tokens the budget has room. `positions`: see `positions_of`.
    """

    train_batch_size: int
    micro_batch_size: int
    max_epochs: int = 1
    token_budget: int = 0
    balance: bool = False
    attention_length: float = float("inf")
    sequence: Axis = ALONE
    blank: BlankPrompt | None = None
    positions: Positions | None = None

    def micro_batches(self, batch: Sampled, index: torch.Tensor) -> list[torch.Tensor]:
        """The sequences `index` [K] in parts, one for each forward pass. Local."""
        if self.token_budget:
            return by_tokens(batch, index, budget=self.token_budget - (len(self.blank.token_ids) if self.blank is not None else 0))
        return by_length(batch, index, size=self.micro_batch_size)

    def micro(self, batch: Sampled, index: torch.Tensor, *, columns: Sequence[str] = (), device: torch.device) -> MicroBatch:
        """One of them as a model's input. Local."""
        if self.token_budget or self.sequence.size > 1:
            return packed(batch, index, columns=columns, device=device, axis=self.sequence, blank=self.blank, positions=self.positions)
        return padded(batch, index, columns=columns, device=device, blank=self.blank)

    def costs(self, lengths: torch.Tensor) -> torch.Tensor:
        """float64 [N]: the work that sequences of these lengths are, in tokens."""
        tokens = lengths.double()
        return tokens + tokens * tokens / self.attention_length


@dataclass(frozen=True)
class Step:
    """The sequences `index` int64 [K] of this rank in one optimizer step, and what all ranks' together count: sampled tokens, and
    sequences with at least one.
    """

    index: torch.Tensor
    num_tokens: float
    num_sequences: float


@dataclass(frozen=True)
class Epoch:
    """One pass over the rollout: where its sequences are worked on, and its steps, whose places are those after `dealing`."""

    dealing: Dealing
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _Everyone:
    """Of all ranks' sequences, rank by rank: `owner` and `place` int64 [N], `lengths`, `sampled` int64 [N], `trains` bool [N]."""

    owner: torch.Tensor
    place: torch.Tensor
    lengths: torch.Tensor
    sampled: torch.Tensor
    trains: torch.Tensor


def epochs(batch: Rewarded, batching: Batching, *, axis: Axis, seed: int) -> list[Epoch]:
    """The steps of one rollout, the same number on every rank of `axis`. Collective, one message.

    Where there are several steps, each pass is shuffled first, the same for a seed and rank. Without `balance` ranks may bring different
    numbers of sequences: each splits its own evenly. The result depends on lengths, `trains` and the seed only, so it can be had again.
    """
    everyone = _everyone(batch, axis)
    counts = torch.bincount(everyone.owner, minlength=axis.size).tolist()
    if batching.balance and axis.size > 1:
        steps = max(1, -(-sum(counts) // batching.train_batch_size))
        return [_dealt(everyone, batching, axis=axis, steps=steps, seed=f"{seed}", epoch=epoch) for epoch in range(batching.max_epochs)]
    steps = max(1, *(-(-count // (batching.train_batch_size // axis.size)) for count in counts))
    at_home = Dealing.at_home(len(batch), axis)
    found = []
    for epoch in range(batching.max_epochs):
        parts = [_shuffled(count, steps, seed=f"{seed}/{rank}", epoch=epoch) for rank, count in enumerate(counts)]
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        members = [torch.cat([start + part[number] for start, part in zip(starts, parts, strict=False)]) for number in range(steps)]
        found.append(Epoch(at_home, tuple(_step(everyone, part, one) for part, one in zip(parts[axis.rank], members, strict=True))))
    return [Epoch(e.dealing, tuple(_trained(step, batch.trains) for step in e.steps)) for e in found]


def by_length(batch: Sampled, index: torch.Tensor, *, size: int) -> list[torch.Tensor]:
    """Parts of at most `size` of the sequences `index` [K], sorted by length so that little is padding."""
    ordered = index[torch.argsort(batch.lengths[index], stable=True)]
    return list(torch.split(ordered, size)) if len(ordered) else []


def by_tokens(batch: Sampled, index: torch.Tensor, *, budget: int) -> list[torch.Tensor]:
    """Parts of at most `budget` tokens of the sequences `index` [K]: first fit, the longest first; a longer sequence is alone.

    First-fit decreasing takes at most 11/9 of the least number of parts, and one (Johnson 1973).
    """
    parts = first_fit(batch.lengths[index].tolist(), budget=budget)
    return [index[torch.tensor(part, dtype=torch.int64)] for part in parts]


def first_fit(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Places of `lengths` in parts of at most `budget` together: the longest first, each into the first part with room; a longer one is
    alone.
    """
    room: list[int] = []
    parts: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        at = next((number for number, left in enumerate(room) if lengths[place] <= left), len(room))
        if at == len(room):
            room.append(budget)
            parts.append([])
        room[at] -= lengths[place]
        parts[at].append(place)
    return parts


def _everyone(batch: Rewarded, axis: Axis) -> _Everyone:
    mine = torch.stack([batch.lengths, batch.num_sampled, batch.trains.long()], dim=1)
    rows = gather_ragged(mine, group=axis.group)
    every = torch.cat(rows)
    owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(part) for part in rows]))
    place = torch.cat([torch.arange(len(part)) for part in rows])
    return _Everyone(owner, place, every[:, 0], every[:, 1], every[:, 2].bool())


def _shuffled(count: int, steps: int, *, seed: str, epoch: int) -> list[torch.Tensor]:
    """Numbers below `count` in so many even parts."""
    items = list(range(count))
    if steps > 1:
        random.Random(seed + (f"/{epoch}" if epoch else "")).shuffle(items)
    ends = [count * number // steps for number in range(steps + 1)]
    return [torch.tensor(items[start:end], dtype=torch.int64) for start, end in zip(ends, ends[1:], strict=False)]


def _dealt(everyone: _Everyone, batching: Batching, *, axis: Axis, steps: int, seed: str, epoch: int) -> Epoch:
    """All sequences shuffled together, and each step's dealt out by cost."""
    members = _shuffled(len(everyone.owner), steps, seed=seed, epoch=epoch)
    costs = torch.where(everyone.trains, batching.costs(everyone.lengths), 0.0)
    targets = torch.zeros(len(everyone.owner), dtype=torch.int64)
    step_of = torch.zeros(len(everyone.owner), dtype=torch.int64)
    for number, index in enumerate(members):
        step_of[index] = number
        targets[index] = _by_cost(costs[index].tolist(), everyone.owner[index].tolist(), axis.size, even=not batching.token_budget)
    dealing, coming = Dealing.of(everyone.owner, everyone.place, targets, axis)
    mine = [(step_of[coming] == number).nonzero().flatten() for number in range(steps)]
    trains = everyone.trains[coming]
    return Epoch(dealing, tuple(_trained(_step(everyone, part, index), trains) for part, index in zip(mine, members, strict=True)))


def _by_cost(costs: Sequence[float], owners: Sequence[int], size: int, *, even: bool) -> torch.Tensor:
    """For each item its rank: the dearest first to the lightest rank (`even`: with room for one more, so that counts are even)."""
    total = len(costs)
    room = [total // size + (rank < total % size) if even else total for rank in range(size)]
    load = [0.0] * size
    targets = torch.zeros(total, dtype=torch.int64)
    for cost, at in sorted(((cost, at) for at, cost in enumerate(costs)), reverse=True):
        # Of equally light ranks its own, so that what need not move stays.
        to = min((rank for rank in range(size) if room[rank]), key=lambda rank: (load[rank], rank != owners[at], rank))
        targets[at] = to
        room[to] -= 1
        load[to] += cost
    return targets


def _step(everyone: _Everyone, index: torch.Tensor, members: torch.Tensor) -> Step:
    """`index`: this rank's places; `members`: all ranks' sequences of the step."""
    sampled = everyone.sampled[members][everyone.trains[members]]
    return Step(index, float(sampled.sum()), float((sampled > 0).sum()))


def _trained(step: Step, trains: torch.Tensor) -> Step:
    return Step(step.index[trains[step.index]], step.num_tokens, step.num_sequences)
