"""LightRFT: reinforcement fine-tuning of language models as one SPMD program. What is named here is imported on first use, and stable."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightrft.version import __version__

if TYPE_CHECKING:
    from lightrft.config import Config, add_arguments, make_config
    from lightrft.errors import LightRFTError
    from lightrft.experience.score_given import score
    from lightrft.models.load import load_tokenizer
    from lightrft.rollout.environment import Continue, End, Environment, ToolCall, Turn
    from lightrft.rollout.gymnasium_texts import GymnasiumTexts
    from lightrft.rollout.openenv_texts import OpenEnvTexts
    from lightrft.rollout.python_tool import PythonTool
    from lightrft.rollout.tool_calls import ToolCalls
    from lightrft.strategy import get_strategy
    from lightrft.trainer import SPMDPPOTrainer
    from lightrft.trainer.build import (
        build_actor,
        build_critic,
        build_ema_model,
        build_initial_model,
        build_scheduler,
        read_eval_sets,
        read_prompts,
    )
    from lightrft.trainer.generate import generate
    from lightrft.trainer.reward_models import build_rewards
    from lightrft.trainer.run import evaluate, open_run, train
    from lightrft.trainer.script import launch
    from lightrft.trainer.steps import count_updates
    from lightrft.types import Sample

__all__ = [
    "Config", "Continue", "End", "Environment", "GymnasiumTexts", "LightRFTError", "OpenEnvTexts", "PythonTool",
    "SPMDPPOTrainer", "Sample", "ToolCall", "ToolCalls", "Turn",
    "__version__",
    "add_arguments", "build_actor", "build_critic", "build_ema_model", "build_initial_model", "build_rewards", "build_scheduler",
    "count_updates", "evaluate", "generate", "get_strategy", "launch", "load_tokenizer", "make_config", "open_run", "read_eval_sets",
    "read_prompts", "score", "train",
]  # fmt: skip

PUBLIC = {
    "Config": "lightrft.config",
    "make_config": "lightrft.config",
    "add_arguments": "lightrft.config",
    "LightRFTError": "lightrft.errors",
    "get_strategy": "lightrft.strategy",
    "SPMDPPOTrainer": "lightrft.trainer",
    "train": "lightrft.trainer.run",
    "evaluate": "lightrft.trainer.run",
    "generate": "lightrft.trainer.generate",
    "score": "lightrft.experience.score_given",
    "Sample": "lightrft.types",
    "Environment": "lightrft.rollout.environment",
    "Continue": "lightrft.rollout.environment",
    "End": "lightrft.rollout.environment",
    "Turn": "lightrft.rollout.environment",
    "ToolCall": "lightrft.rollout.environment",
    "ToolCalls": "lightrft.rollout.tool_calls",
    "PythonTool": "lightrft.rollout.python_tool",
    "GymnasiumTexts": "lightrft.rollout.gymnasium_texts",
    "OpenEnvTexts": "lightrft.rollout.openenv_texts",
    "launch": "lightrft.trainer.script",
    "open_run": "lightrft.trainer.run",
    "load_tokenizer": "lightrft.models.load",
    "read_prompts": "lightrft.trainer.build",
    "read_eval_sets": "lightrft.trainer.build",
    "build_rewards": "lightrft.trainer.reward_models",
    "build_actor": "lightrft.trainer.build",
    "build_critic": "lightrft.trainer.build",
    "build_initial_model": "lightrft.trainer.build",
    "build_ema_model": "lightrft.trainer.build",
    "build_scheduler": "lightrft.trainer.build",
    "count_updates": "lightrft.trainer.steps",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
