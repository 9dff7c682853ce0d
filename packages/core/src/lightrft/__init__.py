"""LightRFT: reinforcement fine-tuning of language models as one SPMD program. What is named here is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "Config": "lightrft.config",
    "make_config": "lightrft.config",
    "get_strategy": "lightrft.strategy",
    "SPMDPPOTrainer": "lightrft.trainer",
    "train": "lightrft.trainer.run",
    "evaluate": "lightrft.trainer.run",
    "Sample": "lightrft.types",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
