"""Moves optimizer state off the device and back, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.distributed.tensor import DTensor

from lightrft_fsdp.shards import cut_as, local

Optimizer = torch.optim.Optimizer
Place = tuple[DTensor, dict[str, torch.Tensor], str]


class Arrival:
    """State that is on its way to the device. The optimizer has the tensors; their values are there after `wait`."""

    def __init__(self, done: torch.cuda.Event | None = None, hosts: Sequence[torch.Tensor] = ()) -> None:
        self._done = done
        self._hosts = hosts  # pinned memory that is still read

    def wait(self) -> None:
        """What the current stream is given from now on comes after the copies. The host does not wait."""
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)
        # torch's allocator of pinned memory, too, gives a block away only after the copies that read it.
        self._done, self._hosts = None, ()


@torch.no_grad()
def to_host(optimizer: Optimizer) -> None:
    """Replaces every sharded state tensor by a host copy of its local shard (pinned where there is CUDA).

    All copies are made before the first one is put in place: an error in between changes nothing. The device's memory is free on return.
    """
    places = list(_state(optimizer))
    pinned = torch.cuda.is_available()
    copies = [_host_copy(local(state[name]), pinned=pinned) for _, state, name in places]
    if pinned:
        torch.cuda.synchronize()
    for (_, state, name), copy in zip(places, copies, strict=True):
        state[name] = copy
    if pinned:
        torch.cuda.empty_cache()  # the engine allocates outside this allocator


@torch.no_grad()
def to_device(optimizer: Optimizer) -> Arrival:
    """The reverse: the shard becomes part of a tensor that is sharded as its parameter is.

    With CUDA the copies run on a stream of their own beside what is computed meanwhile; whoever reads the state waits for them first.
    """
    places = list(_state(optimizer))
    hosts = [local(state[name]) for _, state, name in places]
    shards = [torch.empty_like(host, device=p.to_local().device) for (p, _, _), host in zip(places, hosts, strict=True)]
    arrival = _fill(shards, hosts)
    for (parameter, state, name), shard in zip(places, shards, strict=True):
        state[name] = cut_as(parameter, shard)
    return arrival


def _host_copy(shard: torch.Tensor, *, pinned: bool) -> torch.Tensor:
    copy = torch.empty(shard.shape, dtype=shard.dtype, device="cpu", pin_memory=pinned)
    return copy.copy_(shard, non_blocking=True)


def _fill(shards: Sequence[torch.Tensor], hosts: Sequence[torch.Tensor]) -> Arrival:
    if not any(shard.is_cuda for shard in shards):
        for shard, host in zip(shards, hosts, strict=True):
            shard.copy_(host)
        return Arrival()
    beside, done = torch.cuda.Stream(), torch.cuda.Event()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())  # what the shards' memory held before may still be in use there
    with torch.cuda.stream(beside):
        for shard, host in zip(shards, hosts, strict=True):
            shard.record_stream(beside)  # should it be dropped before its copy is done
            shard.copy_(host, non_blocking=True)
        done.record(beside)
    return Arrival(done, hosts)


def _state(optimizer: Optimizer) -> Iterator[Place]:
    """Moments and masters: tensors of their parameter's shape. The step counter is a number on the host and stays."""
    for parameter, state in optimizer.state.items():
        assert isinstance(parameter, DTensor)
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                yield parameter, state, name
