"""LightRFT: reinforcement fine-tuning of language models as one SPMD program. What is named here is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightrft.version import __version__

if TYPE_CHECKING:
    from lightrft.config import Config, make_config
    from lightrft.experience.score_given import score
    from lightrft.strategy import get_strategy
    from lightrft.trainer import SPMDPPOTrainer
    from lightrft.trainer.generate import generate
    from lightrft.trainer.run import evaluate, train
    from lightrft.types import Sample

__all__ = ["Config", "SPMDPPOTrainer", "Sample", "__version__", "evaluate", "generate", "get_strategy", "make_config", "score", "train"]

PUBLIC = {
    "Config": "lightrft.config",
    "make_config": "lightrft.config",
    "get_strategy": "lightrft.strategy",
    "SPMDPPOTrainer": "lightrft.trainer",
    "train": "lightrft.trainer.run",
    "evaluate": "lightrft.trainer.run",
    "generate": "lightrft.trainer.generate",
    "score": "lightrft.experience.score_given",
    "Sample": "lightrft.types",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
