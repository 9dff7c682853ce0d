"""What works on this machine: versions, GPUs, and each strategy and engine with the command that would mend it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightrft.plugins.known import KNOWN_EXTRAS, install_hint
from lightrft.plugins.registry import PluginEntry, Registry
from lightrft.plugins.runtime import installed

LIBRARIES = ("torch", "transformers", "safetensors", "peft", "ray", "matplotlib")


def examine(registry: Registry) -> dict[str, Any]:
    """Plain data: `python`, `libraries` (version or None), `gpus` (names), `cpus`, and `plugins`, one row for each strategy and engine."""
    rows = [_row(entry) for kind in ("strategy", "engine") for entry in registry.entries(kind)]
    there = {(row["kind"], row["name"]) for row in rows}
    rows += [_absent(kind, name) for kind, name in KNOWN_EXTRAS if (kind, name) not in there]
    return {
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "gpus": _gpus(),
        "cpus": os.cpu_count(),
        "plugins": sorted(rows, key=lambda row: (row["kind"], row["name"])),
    }


def _row(entry: PluginEntry) -> dict[str, Any]:
    runtime = entry.spec.runtime if entry.spec else None
    library = ", ".join(f"{name} {found}" for name, found in installed(runtime).items()) if runtime else ""
    needs = f"{' or '.join(runtime.distributions)} {runtime.versions}" if runtime else ""
    return {
        "kind": entry.kind,
        "name": entry.name,
        "state": entry.state,
        "plugin": str(entry.provider),
        "library": library,
        "needs": needs,
        "fix": _command(entry.reason),
    }


def _command(reason: str) -> str:
    """The `pip install` that a reason ends with, or the reason, where it names none."""
    _, found, what = reason.rpartition("pip install ")
    return found + what


def _absent(kind: str, name: str) -> dict[str, Any]:
    fix = install_hint(kind, name) or ""
    return {"kind": kind, "name": name, "state": "not installed", "plugin": "", "library": "", "needs": "", "fix": fix}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    import torch  # the only one who knows whether a GPU can really be used

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
