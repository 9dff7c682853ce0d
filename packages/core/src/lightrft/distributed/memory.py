"""How much memory does this rank hold?"""

from __future__ import annotations

import resource
import sys

import torch


def memory_report(device: torch.device) -> dict[str, float]:
    """Peak resident memory of the process and, on CUDA, present and peak allocation, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes on macOS and in KiB elsewhere
    report = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        report["device_gib"] = torch.cuda.memory_allocated(device) / 2**30
        report["device_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return report


def memory_now_gib(device: torch.device) -> float:
    """GiB that this rank holds: on CUDA the peak allocation since torch's last reset, else the process's resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**30
    except OSError:  # not Linux: the peak is all there is
        return memory_report(device)["host_peak_gib"]
