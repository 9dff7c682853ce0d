"""How do the weights leave a ZeRO engine as full tensors? As they are at stages 0 to 2, gathered bucket by bucket at stage 3."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lightrft.distributed.buckets import Weight, WeightBucket, in_buckets, tied_names
from lightrft_deepspeed.runtime import deepspeed


@torch.no_grad()
def export(model: torch.nn.Module, *, sharded: bool, dtype: torch.dtype | None, max_bytes: int) -> Iterator[WeightBucket]:
    """Collective where `sharded`: every rank reads it to the end. DeepSpeed gathers each parameter by itself; buckets bound the memory."""
    names = tied_names(model)
    sized = (((name, p), full_size(p) * (dtype or p.dtype).itemsize) for name, p in model.named_parameters())
    for items in in_buckets(sized, max_bytes=max_bytes):
        with deepspeed.zero.GatheredParameters([p for _, p in items], enabled=sharded):
            # A copy at stage 3, where the gathered tensor ends with the block.
            bucket = [Weight(names[name], p.detach().to(dtype or p.dtype, copy=sharded)) for name, p in items]
        yield bucket


def full_size(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter, which ZeRO-3 replaces by an empty tensor."""
    size: int = getattr(parameter, "ds_numel", parameter.numel())
    return size
