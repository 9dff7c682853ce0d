"""Sequences change their rank: which ones go where, and the exchange of their columns, two messages whatever the number of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lightrft.batch.collect import NOTHING
from lightrft.batch.stages import Sampled, columns_of, joined
from lightrft.distributed.collectives import gather_objects

Stage = TypeVar("Stage", bound=Sampled)
Group = dist.ProcessGroup | None


def even_targets(counts: Sequence[int]) -> list[list[int]]:
    """For each rank's items the ranks where they go, so that all have about as many: as few move as can be, the last ones first.

    Ranks that take one more than others (where the total cannot be divided) are the first ones.
    """
    world = len(counts)
    fair = [sum(counts) // world + (rank < sum(counts) % world) for rank in range(world)]
    places = [rank for rank in range(world) for _ in range(max(fair[rank] - counts[rank], 0))]
    targets = []
    for rank, count in enumerate(counts):
        stay = min(count, fair[rank])
        targets.append([rank] * stay + places[: count - stay])
        places = places[count - stay :]
    return targets


def exchange(batch: Stage, targets: torch.Tensor, *, group: Group) -> Stage:
    """Each sequence on the rank of `group` that `targets` int64 [N] says: the ones that stay first, then those of the others in rank order.

    Tensors cross as one array of tokens and one of sequences; samples (texts and rows) as objects. Collective.
    """
    if group is None:
        return batch
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    moved = [batch.select((targets == to).nonzero().flatten()) for to in range(size)]
    arrived = _all_to_all(moved, group=group)
    return joined([moved[rank], *(part for source, part in enumerate(arrived) if source != rank)])


def gathered(batch: Stage, *, group: Group) -> Stage:
    """All ranks' sequences in rank order, on every rank. Collective."""
    if group is None:
        return batch
    return joined(_all_to_all([batch] * dist.get_world_size(group), group=group))


def without_samples(batch: Stage) -> Stage:
    """The same sequences without what reward functions see of them: an update needs none of it."""
    return replace(batch, samples=(NOTHING,) * len(batch), greedy=(None,) * len(batch))


def _all_to_all(parts: Sequence[Stage], *, group: Group) -> list[Stage]:
    """Part i goes to rank i; what each rank has sent here."""
    stage = type(parts[0])
    columns = columns_of(stage)
    tensors = [name for name in columns if isinstance(getattr(parts[0], name), torch.Tensor)]
    objects = [name for name in columns if name not in tensors]
    of = {per: [name for name in tensors if columns[name] == per] for per in ("token", "sequence")}
    sizes = _exchanged_sizes([[len(part), int(part.offsets[-1])] for part in parts], group=group)
    sequences = send_rows([_packed(part, of["sequence"], with_lengths=True) for part in parts], [n for n, _ in sizes], group=group)
    tokens = send_rows([_packed(part, of["token"]) for part in parts], [s for _, s in sizes], group=group)
    texts = _send_objects([[getattr(part, name) for name in objects] for part in parts], group=group)
    found: list[Stage] = []
    for by_sequence, by_token, mine in zip(sequences, tokens, texts, strict=True):
        columns_here: dict[str, Any] = dict(zip(objects, mine, strict=True))
        columns_here |= _unpacked(by_sequence[:, 1:], of["sequence"], like=parts[0]) | _unpacked(by_token, of["token"], like=parts[0])
        found.append(stage(offsets=torch.nn.functional.pad(by_sequence[:, 0].cumsum(0), (1, 0)), **columns_here))
    return found


def _packed(part: Sampled, names: Sequence[str], *, with_lengths: bool = False) -> torch.Tensor:
    """int64 [K, C]: the bits of each column, floats as they are in memory."""
    columns = [part.lengths] if with_lengths else []
    columns += [_as_int64(getattr(part, name)) for name in names]
    return torch.stack(columns, dim=1) if columns else torch.zeros(len(part), 0, dtype=torch.int64)


def _unpacked(packed: torch.Tensor, names: Sequence[str], *, like: Sampled) -> dict[str, torch.Tensor]:
    return {name: _from_int64(packed[:, at].contiguous(), getattr(like, name).dtype) for at, name in enumerate(names)}


def _as_int64(values: torch.Tensor) -> torch.Tensor:
    if values.dtype == torch.float64:
        return values.contiguous().view(torch.int64)
    return (values.contiguous().view(torch.int32) if values.dtype == torch.float32 else values).long()


def _from_int64(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float64:
        return values.view(torch.float64)
    return values.int().view(torch.float32) if dtype == torch.float32 else values.to(dtype)


def _exchanged_sizes(mine: Sequence[Sequence[int]], *, group: Group) -> list[list[int]]:
    """What each rank sends here, from what this one sends to each."""
    sent = torch.tensor(mine, dtype=torch.int64)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.tolist()


def send_rows(parts: Sequence[torch.Tensor], arriving: Sequence[int], *, group: Group) -> list[torch.Tensor]:
    """Rows [K, C] to each rank, and the rows that come from each, `arriving` many. Collective."""
    sent = torch.cat(list(parts)).contiguous()
    received = sent.new_empty(sum(arriving), sent.shape[1])
    dist.all_to_all_single(received, sent, list(arriving), [len(part) for part in parts], group=group)
    return list(torch.split(received, list(arriving)))


def _send_objects(mine: Sequence[Sequence[Any]], *, group: Group) -> list[list[Any]]:
    """Texts and rows, which are no arrays."""
    rank = dist.get_rank(group)
    kept = [[] if to == rank else list(one) for to, one in enumerate(mine)]
    return [list(mine[rank]) if source == rank else sent[rank] for source, sent in enumerate(gather_objects(kept, group=group))]
