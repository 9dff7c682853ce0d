"""Gives values to a model that was sharded while it was empty. Each rank reads the rows of its own shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from lightrft.weights.buckets import tied_names
from lightrft.weights.safetensors_reader import WeightFiles


@torch.no_grad()
def fill_shards(model: nn.Module, weights: WeightFiles, *, device: torch.device) -> None:
    """`model` is what `sharding.shard` made of a model on the meta device. Not collective."""
    # What `to_empty` does, but for buffers: they have values.
    apply: Any = model._apply
    apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    names = tied_names(model)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),), name
        local = parameter.to_local()
        first = parameter.device_mesh.get_local_rank() * -(-parameter.shape[0] // parameter.device_mesh.size())
        if local.numel():  # torch.chunk leaves the last ranks without rows where there are few
            local.copy_(weights.rows(names[name], first, first + local.shape[0]))
