"""What a benchmark measured, kept with machine, versions and date, and compared with the last result that is committed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

COMMITTED = Path(__file__).resolve().parent / "results"
MOVED = 0.10
PACKAGES = ("lightrft", "torch", "transformers", "vllm", "deepspeed", "trl")


def keep(name: str, numbers: Mapping[str, float], *, folder: Path) -> Path:
    """Writes `folder`/NAME.json and says what moved by more than a tenth against `benchmarks/results/NAME.json`; returns the file.

    A result is committed by copying that file there. Nothing fails: machines differ.
    """
    found = {"name": name, "date": datetime.now(UTC).isoformat(timespec="seconds"), **machine(), "numbers": dict(numbers)}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    before = COMMITTED / file.name
    if not before.is_file():
        print(f"{file}: nothing to compare with; commit it as {before}")
        return file
    last = json.loads(before.read_text(encoding="utf-8"))
    if last["device"] != found["device"]:
        print(f"the last result is of another machine: {last['device']}, this is {found['device']}")
    for line in moved(last["numbers"], numbers):
        print(f"{line} (since {last['date']})")
    return file


def moved(last: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """One line for each number that changed by more than a tenth, or is new, or is gone."""
    lines = [f"{name}: {last[name]:.4g} -> {now[name]:.4g}" for name in last if name in now and _far(last[name], now[name])]
    lines += [f"{name}: {now[name]:.4g}, new" for name in now if name not in last]
    return lines + [f"{name}: gone, was {last[name]:.4g}" for name in last if name not in now]


def machine() -> dict[str, Any]:
    """The device, its number of cores and the versions of what counts."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), "versions": _versions()}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _far(last: float, now: float) -> bool:
    return abs(now - last) > MOVED * abs(last)
