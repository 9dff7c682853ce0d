"""The weights of a model that `fully_shard` sharded, as full tensors. In buckets of bounded size, with one all-gather each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Shard

from lightrft.weights.buckets import Weight, WeightBucket, everything, in_buckets, tied_names

# torch below 2.13 knows only the older name, 2.13 warns of it; keep `all_gather_single` alone once 2.12 is out of range.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

ALIGNMENT = 16
"""Bytes; every segment begins at a multiple, so that its bytes can be seen as any dtype."""

Item = tuple[str, torch.Tensor]


@torch.no_grad()
def export_sharded(
    model: torch.nn.Module, *, dtype: torch.dtype | None, max_bytes: int, only: Callable[[str], bool] = everything
) -> Iterator[WeightBucket]:
    """Collective over the model's mesh: every rank reads it to the end. `only` says by name what is gathered."""
    names = tied_names(model)
    sized = (((name, p), p.numel() * (dtype or p.dtype).itemsize) for name, p in model.named_parameters() if only(name))
    for items in in_buckets(sized, max_bytes=max_bytes):
        yield [Weight(names[name], tensor) for name, tensor in _gather(items, dtype)]


def gather_flat(shards: Sequence[torch.Tensor], *, group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    """One flat tensor for each shard: those of all ranks in their order, by a single all-gather. Collective over `group`.

    Shards are flat; each has the same length and dtype on every rank. They travel as bytes, so one bucket may hold several dtypes.
    """
    segments = [_aligned(shard) for shard in shards]
    flat = torch.cat(segments)
    everywhere = torch.empty(dist.get_world_size(group), flat.numel(), dtype=torch.uint8, device=flat.device)
    _all_gather(everywhere.view(-1), flat, group=group)
    wholes = []
    begin = 0
    for shard, segment in zip(shards, segments, strict=True):
        held = shard.numel() * shard.element_size()
        wholes.append(everywhere[:, begin : begin + held].reshape(-1).view(shard.dtype))
        begin += segment.numel()
    return wholes


def _gather(items: Sequence[Item], dtype: torch.dtype | None) -> Iterator[Item]:
    first = items[0][1]
    assert isinstance(first, DTensor)
    wholes = gather_flat([_padded_shard(p, dtype) for _, p in items], group=first.device_mesh.get_group())
    for (name, parameter), whole in zip(items, wholes, strict=True):
        yield name, whole[: parameter.numel()].view(parameter.shape)


def _padded_shard(parameter: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """This rank's rows, cast first (half the bytes), padded to the number of rows of the first rank.

    `fully_shard` splits as torch.chunk does: all ranks but the last ones hold ceil(rows / ranks).
    """
    assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),), parameter
    local = parameter.to_local().detach().to(dtype or parameter.dtype).reshape(-1)
    rows = -(-parameter.shape[0] // parameter.device_mesh.size())
    return F.pad(local, (0, rows * parameter.shape[1:].numel() - local.numel()))


def _aligned(shard: torch.Tensor) -> torch.Tensor:
    octets = shard.view(torch.uint8)
    return F.pad(octets, (0, -octets.numel() % ALIGNMENT))
