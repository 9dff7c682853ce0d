"""How does optimizer state leave the device and come back, with the same bits?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.distributed.tensor import DTensor

Optimizer = torch.optim.Optimizer
Place = tuple[DTensor, dict[str, torch.Tensor], str]


@torch.no_grad()
def to_host(optimizer: Optimizer) -> None:
    """Replaces every sharded state tensor by a host copy of its local shard (pinned where there is CUDA).

    All copies are made before the first one is put in place: an error in between changes nothing.
    """
    places = list(_state(optimizer))
    pinned = torch.cuda.is_available()
    copies = []
    for _, state, name in places:
        local = _local(state[name])
        copy = torch.empty(local.shape, dtype=local.dtype, device="cpu", pin_memory=pinned)
        copies.append(copy.copy_(local, non_blocking=True))
    if pinned:
        torch.cuda.synchronize()
    for (_, state, name), copy in zip(places, copies, strict=True):
        state[name] = copy
    if pinned:
        torch.cuda.empty_cache()  # the engine allocates outside this allocator


@torch.no_grad()
def to_device(optimizer: Optimizer) -> None:
    """The reverse: the shard becomes part of a tensor that is cut as its parameter is."""
    places = list(_state(optimizer))
    copies = []
    for parameter, state, name in places:
        local = torch.empty_like(_local(state[name]), device=parameter.to_local().device)
        copies.append(local.copy_(_local(state[name]), non_blocking=True))
    for (parameter, state, name), local in zip(places, copies, strict=True):
        state[name] = DTensor.from_local(
            local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # before the pinned copies are freed


def _state(optimizer: Optimizer) -> Iterator[Place]:
    """The moments: tensors of their parameter's shape. The step counter is a number on the host and stays."""
    for parameter, state in optimizer.state.items():
        assert isinstance(parameter, DTensor)
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                yield parameter, state, name


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
