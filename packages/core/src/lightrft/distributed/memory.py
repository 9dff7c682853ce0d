"""The memory that this rank holds, now and at most."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 2**30


def memory_report(device: torch.device) -> dict[str, float]:
    """Peak resident memory of the process and, on CUDA, what is in use of its GPU now and at most since torch's peaks were reset, in GiB.

    In use is what is mapped, by any program: torch's own count includes an engine's memory while that sleeps and is not mapped.
    """
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes on macOS and in KiB elsewhere
    report = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        report["device_gib"] = _in_use(device) / GIB
        report["device_peak_gib"] = _in_use_at_most(device) / GIB
    return report


def release_cached(device: torch.device) -> None:
    """Unmaps what torch's allocator keeps for later: on CUDA, memory for whoever allocates beside it, such as an engine that wakes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory in use since `restart`, GiB: on CUDA of this rank's GPU, all that is mapped there; else the process's, now.

    torch records its own peak only, and an engine maps and unmaps beside it. `note` divides the time into intervals in which torch alone
    maps: within one, the peak is what is in use at its end and how much more torch had reserved. Nothing here is collective.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._most = 0

    def restart(self) -> None:
        """Forgets what was."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._most = 0

    def note(self) -> None:
        """Called right before and after memory is mapped or unmapped beside torch's allocator."""
        if self._device.type == "cuda":
            self._most = max(self._most, _in_use_at_most(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)

    def gib(self) -> float:
        """The peak so far."""
        if self._device.type == "cuda":
            self.note()
            return self._most / GIB
        return _resident_gib()


def _in_use(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _in_use_at_most(device: torch.device) -> int:
    return _in_use(device) + torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)


def _resident_gib() -> float:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / GIB
    except OSError:  # not Linux: the peak is all there is
        return memory_report(torch.device("cpu"))["host_peak_gib"]
