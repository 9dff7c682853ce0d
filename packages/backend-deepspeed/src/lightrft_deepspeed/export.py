"""How do the weights leave a ZeRO engine as full tensors? As they are at stages 0 to 2, gathered bucket by bucket at stage 3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lightrft.distributed.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft.strategy.shard_export import gather_flat

Item = tuple[str, torch.Tensor]


@torch.no_grad()
def export(model: torch.nn.Module, *, sharded: bool, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
    """Collective where `sharded`: every rank reads it to the end, one all-gather for each bucket.

    Not by DeepSpeed's GatheredParameters, which gathers each parameter by itself, and before it can be cast.
    """
    names = tied_names(model)
    sized = (((name, p), full_size(p) * (dtype or p.dtype).itemsize) for name, p in model.named_parameters())
    for items in in_buckets(sized, max_bytes=max_bytes):
        wholes = _gather(items, dtype) if sharded else [p.detach().to(dtype or p.dtype) for _, p in items]
        yield [Weight(names[name], whole) for (name, _), whole in zip(items, wholes, strict=True)]


def full_size(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter, which ZeRO-3 replaces by an empty tensor."""
    size: int = getattr(parameter, "ds_numel", parameter.numel())
    return size


def _gather(items: Sequence[Item], dtype: torch.dtype | None) -> list[torch.Tensor]:
    """Each rank holds an equal part of each flattened parameter, `ds_tensor`; the last part is filled up."""
    parameters: list[Any] = [p for _, p in items]
    wholes = gather_flat([p.ds_tensor.detach().to(dtype or p.dtype) for p in parameters], group=None)
    return [whole[: p.ds_numel].view(p.ds_shape) for p, whole in zip(parameters, wholes, strict=True)]
