"""A second model follows a trained one as the moving average of its weights; each rank keeps, moves and saves its own rows.

The same under every backend: the average is never trained, so `fully_shard` shards it, whatever holds the trained model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightrft.distributed.world import World
from lightrft.strategy.shard_load import fill_shards
from lightrft.strategy.sharding import Meshes, shard_frozen
from lightrft.weights.buckets import WeightBucket, saved_buffers, tied_names
from lightrft.weights.safetensors_reader import WeightFiles


def prepare(model: nn.Module, *, world: World, weights: WeightFiles | None) -> nn.Module:
    """In float32, also under `bf16`: the small moves of an average are lost in bfloat16. Sharded over all ranks. Collective."""
    model = model.requires_grad_(False).eval().float()
    if world.group is None:
        if weights is not None:
            weights.fill(model)
        return model.to(world.device)
    model = shard_frozen(model, mesh=Meshes(world).of(world.world_size), bf16=False)
    if weights is not None:
        fill_shards(model, weights, device=world.device)
    return model


def problem(average: nn.Module, *, shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> str:
    """Why `average` cannot follow a model whose exported weights have these names and shapes; empty where it can. Local."""
    names = tied_names(average)
    coarse = [name for name, p in average.named_parameters() if p.dtype is not torch.float32]
    if coarse:
        return f"it is held in {dict(average.named_parameters())[coarse[0]].dtype}, where small moves are lost; use prepare_ema_model"
    here = {names[name]: tuple(p.shape) for name, p in average.named_parameters()}
    here |= {(name,): tuple(buffer.shape) for name, buffer in saved_buffers(average).items()}
    different = [known for known in sorted({*here, *shapes}) if here.get(known) != shapes.get(known)]
    if not different:
        return ""
    first = different[0]
    return (
        f"it is another model than the actor: {len(different)} parameters differ, first {first[0]} "
        f"(there {here.get(first)}, in the actor {shapes.get(first)})"
    )


@torch.no_grad()
def move(average: nn.Module, model: nn.Module, *, buckets: Callable[[], Iterable[WeightBucket]], beta: float) -> None:
    """average <- beta average + (1 - beta) model, element by element; saved buffers, which nobody trains, are copied. Collective.

    Where both are sharded in the same way nothing travels; else the model's weights come in float32 `buckets`, of which each rank takes
    its own rows.
    """
    mine, theirs = dict(average.named_parameters()), dict(model.named_parameters())
    if mine.keys() == theirs.keys() and all(_cut_alike(p, theirs[name]) for name, p in mine.items()):
        for name, parameter in mine.items():
            _held(parameter)[0].lerp_(_held(theirs[name])[0].to(parameter.dtype), 1 - beta)
        _copy_buffers(average, saved_buffers(model))
        return
    for bucket in buckets():
        for weight in bucket:
            if weight.is_buffer:
                _copy_buffers(average, {weight.names[0]: weight.tensor})
                continue
            name = next(name for name in weight.names if name in mine)
            held, first = _held(mine[name])
            held.lerp_(weight.tensor.reshape(-1)[first : first + held.numel()], 1 - beta)


def save(folder: Path, average: nn.Module, *, rank: int) -> None:
    """Every rank writes the elements that it holds; a saved buffer, which each holds whole, is part of every file. Local."""
    held = {name: _held(p) for name, p in average.named_parameters()}
    held |= {name: (buffer.detach().reshape(-1), 0) for name, buffer in saved_buffers(average).items()}
    torch.save({name: {"first": first, "values": values} for name, (values, first) in held.items()}, folder / f"rank-{rank:05d}.pt")


@torch.no_grad()
def load(folder: Path, average: nn.Module) -> None:
    """The reverse, on any number of ranks: each reads the elements that it holds now. Local."""
    files = [torch.load(path, mmap=True, weights_only=True, map_location="cpu") for path in sorted(folder.glob("rank-*.pt"))]
    for name, parameter in average.named_parameters():
        held, first = _held(parameter)
        for part in (file[name] for file in files):
            start, values = part["first"], part["values"]
            begin, end = max(first, start), min(first + held.numel(), start + values.numel())
            if begin < end:
                held[begin - first : end - first].copy_(values[begin - start : end - start])
    _copy_buffers(average, {name: files[0][name]["values"] for name in saved_buffers(average)})


def _copy_buffers(average: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    held = saved_buffers(average)
    for name, value in values.items():
        held[name].copy_(value.view(held[name].shape))


def _held(parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """This rank's elements of the flattened parameter, sharing its memory, and the first one's index."""
    if not isinstance(parameter, DTensor):
        return parameter.detach().view(-1), 0
    local = parameter.to_local().detach()
    rows = -(-parameter.shape[0] // parameter.device_mesh.size())  # as torch.chunk splits
    return local.view(-1), parameter.device_mesh.get_local_rank() * rows * parameter.shape[1:].numel()


def _cut_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        isinstance(one, DTensor)
        and isinstance(other, DTensor)
        and one.shape == other.shape
        and one.placements == other.placements
        and one.device_mesh == other.device_mesh
    )
