"""The weights of a ZeRO engine as full tensors. As they are at stages 0 to 2, else gathered bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from lightrft.strategy.shard_export import gather_flat
from lightrft.weights.buckets import Weight, WeightBucket, everything, in_buckets, tied_names
from lightrft_deepspeed.fragments import held_once

Item = tuple[str, torch.Tensor]


@torch.no_grad()
def export(
    model: torch.nn.Module, *, sharded: bool, dtype: torch.dtype | None, max_bytes: int, only: Callable[[str], bool] = everything
) -> Iterator[WeightBucket]:
    """Collective where `sharded`: every rank reads it to the end, one all-gather for each bucket. `only` says by name what leaves.

    Not by DeepSpeed's GatheredParameters, which gathers each parameter by itself, and before it can be cast.
    """
    names = tied_names(model)
    sized = (((name, p), full_size(p) * (dtype or p.dtype).itemsize) for name, p in model.named_parameters() if only(name))
    for items in in_buckets(sized, max_bytes=max_bytes):
        wholes = _gather(items, dtype) if sharded else [p.detach().to(dtype or p.dtype) for _, p in items]
        yield [Weight(names[name], whole) for (name, _), whole in zip(items, wholes, strict=True)]


@torch.no_grad()
def export_masters(
    engine: Any, *, dtype: torch.dtype | None, max_bytes: int, only: Callable[[str], bool] = everything
) -> Iterator[WeightBucket]:
    """The float32 values that bf16 training steps on (None: as they are). Collective: one all-reduce for each bucket.

    A frozen parameter has no master; it leaves with the value that it is computed with.
    """
    names = tied_names(engine.module)
    device = next(engine.module.parameters()).device
    fragments = {fragment.name: fragment for held in held_once(engine) for fragment in held}
    sized = (((name, p), full_size(p) * torch.float32.itemsize) for name, p in engine.module.named_parameters() if only(name))
    for items in in_buckets(sized, max_bytes=max_bytes):
        flat = torch.zeros(sum(full_size(p) for _, p in items), dtype=torch.float32, device=device)
        wholes = torch.split(flat, [full_size(p) for _, p in items])
        for (name, _), whole in zip(items, wholes, strict=True):
            if name in fragments:
                part = fragments[name]
                whole[part.first : part.first + part.length].copy_(part.of(part.master))
        dist.all_reduce(flat.view(torch.int32))  # each element is one rank's and 0 elsewhere: a sum of bits, which keeps the sign of -0.0
        shaped = [whole.view(getattr(p, "ds_shape", p.shape)) for (_, p), whole in zip(items, wholes, strict=True)]
        yield [Weight(names[name], whole.to(dtype or whole.dtype)) for (name, _), whole in zip(items, shaped, strict=True)]


def full_size(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter, which ZeRO-3 replaces by an empty tensor."""
    size: int = getattr(parameter, "ds_numel", parameter.numel())
    return size


def _gather(items: Sequence[Item], dtype: torch.dtype | None) -> list[torch.Tensor]:
    """Each rank holds an equal part of each flattened parameter, `ds_tensor`; the last part is filled up."""
    parameters: list[Any] = [p for _, p in items]
    wholes = gather_flat([p.ds_tensor.detach().to(dtype or p.dtype) for p in parameters], group=None)
    return [whole[: p.ds_numel].view(p.ds_shape) for p, whole in zip(parameters, wholes, strict=True)]
