"""This rank, its device, and the start of the process group."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import torch
import torch.distributed as dist

from lightrft.distributed.heartbeat import Stamp
from lightrft.distributed.memory import PeakMemory

DEFAULT_TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all ranks. With `group` None there is one rank and no process group."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None

    @property
    def is_first(self) -> bool:
        """Whether this is the world's first rank."""
        return self.rank == 0

    @cached_property
    def stamp(self) -> Stamp:
        """Where this rank is in the run, for those who watch it."""
        return Stamp()

    @cached_property
    def memory(self) -> PeakMemory:
        """The peak of this rank's memory, which whoever maps some beside torch's allocator keeps up to date."""
        return PeakMemory(self.device)

    @classmethod
    def alone(cls) -> World:
        """One rank without a process group."""
        return cls(rank=0, world_size=1, local_rank=0, device=_device(0), group=None)

    @classmethod
    def join(cls, *, need_group: bool, timeout_s: int = DEFAULT_TIMEOUT_S) -> World:
        """Joins the ranks that `torchrun` started (its environment variables). Collective.

        Starts a process group (gloo on the CPU, nccl beside it on CUDA) unless one runs already, or unless there is one rank
        and `need_group` is False. Devices are `cuda:LOCAL_RANK`, or the CPU where there is no CUDA.
        """
        rank = int(os.environ.get("RANK", "0"))
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = _device(local_rank)
        if not dist.is_initialized():
            if world_size == 1 and not need_group:
                return cls.alone()
            _start(rank, world_size, device, timeout_s)
        return cls(rank=dist.get_rank(), world_size=dist.get_world_size(), local_rank=local_rank, device=device, group=dist.group.WORLD)

    def leave(self) -> None:
        """Ends the process group, if there is one. Collective."""
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _start(rank: int, world_size: int, device: torch.device, timeout_s: int) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if "MASTER_ADDR" in os.environ:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
        # torchrun's store outlives a group that was left: without a fresh prefix, joining again would read the old addresses and hang.
        joins = store.add(f"lightrft/joins/{rank}", 1)
        fresh = dist.PrefixStore(f"lightrft/join/{joins}", store)
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, store=fresh)
    else:
        dist.init_process_group(backend, rank=0, world_size=1, timeout=timeout, store=dist.HashStore())
