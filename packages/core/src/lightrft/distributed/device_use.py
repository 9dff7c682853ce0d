"""What an error says of a full GPU: who holds its memory, by torch for its own allocator and by the driver (NVML) for the others."""

from __future__ import annotations

import os
from typing import Any

import torch

from lightrft.distributed.memory import GIB


def who_holds(device: torch.device) -> str:
    """One line on a CUDA device: its size, what is free, what torch holds in this process, what everything else holds."""
    free, total = torch.cuda.mem_get_info(device)
    tensors, cached = _of_training(device)
    rest = total - free - tensors - cached
    return (
        f"{device} has {_gib(total)} GiB, free {_gib(free)}; training's tensors hold {_gib(tensors)}, torch's cache {_gib(cached)}, "
        f"the engine, CUDA's own and other programs {_gib(rest)} ({_of_processes(device)})"
    )


def _of_training(device: torch.device) -> tuple[int, int]:
    """Bytes in tensors, and in blocks kept for later, of torch's own pool: an engine's pools, mapped or not, are others."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    own = [s for s in segments if s["device"] == device.index and tuple(s["segment_pool_id"]) == (0, 0)]
    tensors = sum(segment["allocated_size"] for segment in own)
    return tensors, sum(segment["total_size"] for segment in own) - tensors


def _of_processes(device: torch.device) -> str:
    """What NVML says of each process on the device, or why it says nothing."""
    try:
        import pynvml
    except ImportError:
        return "by process not known: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        running: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError as error:
        return f"by process not known: NVML says {error}"
    told = [f"{_name(p.pid)} {'unknown' if p.usedGpuMemory is None else _gib(p.usedGpuMemory)}" for p in running]
    return f"by process: {', '.join(told)}" if told else "by process not known: NVML lists none"


def _name(pid: int) -> str:
    return "this process" if pid == os.getpid() else f"process {pid}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
