"""A model's blocks as kernels that torch makes of them: one set for all blocks, for any number and length of rows."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from lightrft.config.checks import compile_problem
from lightrft.config.schema import Config
from lightrft.errors import ConfigError
from lightrft.observe.compiler import counting_backend, start_counting
from lightrft.strategy.sharding import find_blocks

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
GRAPHS_AT_MOST = 32
"""Of one block's code: with and without gradients, one row or several, for each model of the class. torch runs what comes after
these uncompiled, and says so."""
SMALL = 10_000_000
"""Parameters below which auto leaves a model alone: its steps take milliseconds, and never win back the minute of the compiler."""


def compile_where_asked(model: nn.Module, config: Config, *, device_type: str) -> None:
    """`compile_blocks`, where the settings ask for it: by auto not of experts, whose code depends on the tokens' choice and comes out in
    pieces, nor of models below `SMALL`.
    """
    left_alone = config.compile == "auto" and (has_experts(model) or sum(p.numel() for p in model.parameters()) < SMALL)
    if compiles(config, device_type) and not left_alone:
        compile_blocks(model)


def has_experts(model: nn.Module) -> bool:
    """Whether transformers' classes in the model choose experts by token."""
    return any("Experts" in type(module).__name__ or "MoE" in type(module).__name__.replace("Moe", "MoE") for module in model.modules())


def compiles(config: Config, device_type: str) -> bool:
    """Whether a run with these settings compiles its models there: `compile`, of which auto is yes on CUDA where nothing forbids it.

    Raises:
        ConfigError: asked for, and torch's compiler is switched off in this process.
    """
    if config.compile != "yes":
        return config.compile == "auto" and device_type == "cuda" and compile_problem(config) is None and _is_on()
    if not _is_on():
        raise ConfigError(
            [
                "compile='yes', and torch's compiler is off in this process (TORCHDYNAMO_DISABLE=1; the engine vllm sets it on the CPU); "
                "unset it, take another engine, or leave compile out"
            ]
        )
    return True


def compile_blocks(model: nn.Module) -> None:
    """Changes the model's blocks in place: each `forward` is compiled at its first call, and again for what its code depends on.

    Names of parameters stay. Hooks of a backend stay outside: they belong to the call, not to `forward`; so does recomputation, which is
    laid around what this leaves (`recompute_activations`). Compiled kernels are kept between runs, under ~/.cache/lightrft.

    Raises:
        ModelError: the model has no blocks.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lightrft" / "inductor"
    os.environ.setdefault(CACHE_VARIABLE, str(cache))
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, GRAPHS_AT_MOST)
    start_counting()
    for block in find_blocks(model):
        block.forward = torch.compile(block.forward, dynamic=True, backend=counting_backend)


def _is_on() -> bool:
    return not torch._dynamo.config.disable
