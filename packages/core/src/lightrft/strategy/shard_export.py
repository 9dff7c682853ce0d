"""How do the weights of a model that `fully_shard` cut leave as full tensors? In buckets of bounded size, with one all-gather each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Shard

from lightrft.distributed.buckets import Weight, WeightBucket, in_buckets, tied_names

# torch below 2.13 knows only the older name, 2.13 warns of it; keep `all_gather_single` alone once 2.12 is out of range.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

ALIGNMENT = 16
"""Bytes; every segment begins at a multiple, so that its bytes can be seen as any dtype."""

Item = tuple[str, torch.Tensor]


@torch.no_grad()
def export_sharded(model: torch.nn.Module, *, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
    """Collective over the model's mesh: every rank reads it to the end."""
    names = tied_names(model)
    sized = (((name, p), p.numel() * (dtype or p.dtype).itemsize) for name, p in model.named_parameters())
    for items in in_buckets(sized, max_bytes=max_bytes):
        yield [Weight(names[name], tensor) for name, tensor in _gather(items, dtype)]


def _gather(items: Sequence[Item], dtype: torch.dtype | None) -> Iterator[Item]:
    """The local shards, cast first (half the bytes), padded to one length on every rank, travel as bytes: dtypes may differ."""
    segments = [_segment(p, dtype) for _, p in items]
    flat = torch.cat(segments)
    first = items[0][1]
    assert isinstance(first, DTensor)
    group = first.device_mesh.get_group()
    everywhere = torch.empty(dist.get_world_size(group), flat.numel(), dtype=torch.uint8, device=flat.device)
    _all_gather(everywhere.view(-1), flat, group=group)
    begin = 0
    for (name, parameter), segment in zip(items, segments, strict=True):
        to = dtype or parameter.dtype
        held = _rows_per_rank(parameter) * _row_size(parameter) * to.itemsize
        rows = everywhere[:, begin : begin + held].reshape(-1).view(to)
        yield name, rows[: parameter.numel()].view(parameter.shape)
        begin += segment.numel()


def _segment(parameter: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),), parameter
    local = parameter.to_local().detach().to(dtype or parameter.dtype).reshape(-1)
    local = F.pad(local, (0, _rows_per_rank(parameter) * _row_size(parameter) - local.numel()))
    octets = local.view(torch.uint8)
    return F.pad(octets, (0, -octets.numel() % ALIGNMENT))


def _rows_per_rank(parameter: DTensor | torch.Tensor) -> int:
    """`fully_shard` cuts as torch.chunk does: all ranks but the last ones hold ceil(rows / ranks)."""
    assert isinstance(parameter, DTensor)
    return -(-parameter.shape[0] // parameter.device_mesh.size())


def _row_size(parameter: torch.Tensor) -> int:
    return parameter.shape[1:].numel()
