"""`sgl_kernel.mamba`, which models with linear attention import."""

from __future__ import annotations

from typing import Any

from sgl_kernel import Absent


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"sgl_kernel.mamba.{name}")
