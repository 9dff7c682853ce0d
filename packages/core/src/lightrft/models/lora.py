"""How does a model get low-rank adapters (LoRA, arXiv:2106.09685), which alone are trained? By peft, with values that all ranks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightrft.errors import ModelError
from lightrft.weights.buckets import tied_names
from lightrft.weights.lora_merge import ADAPTER, A, B, is_adapter

ALL_LINEAR = "all-linear"
MAX_NAMED = 10


def add_lora(model: torch.nn.Module, *, rank: int, alpha: float, target_modules: Sequence[str], seed: int) -> Any:
    """peft's model around `model`: adapters of `rank`, scaled by alpha / rank, in float32; every other parameter is frozen.

    `target_modules` are last parts of module names, or the one word "all-linear": every linear layer but the output. A starts as peft's
    would (Kaiming, uniform), from `seed`; B at zero: the model is the one without adapters. `model` may be on the meta device; its adapters
    have values.

    Raises:
        ModelError: no layer has such a name, or one shares its weight with another.
    """
    from peft import LoraConfig, get_peft_model

    targets = ALL_LINEAR if list(target_modules) == [ALL_LINEAR] else list(target_modules)
    settings: Any = LoraConfig  # annotated with an int for alpha, of some versions; it divides, any number will do
    config = settings(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    linear = _linear_layers(model)
    unmatched = [target for target in target_modules if targets != ALL_LINEAR and target not in linear]
    if unmatched:
        raise ModelError(
            f"lora_target_modules: {type(model).__name__} has no linear layer called {', '.join(unmatched)}; it has "
            f"{', '.join(linear[:MAX_NAMED])}; or set lora_target_modules to {ALL_LINEAR}"
        )
    tied = [target for target in target_modules if target in _tied_layers(model)]
    if tied:
        raise ModelError(
            f"lora_target_modules: {', '.join(tied)} shares its weight with another layer of {type(model).__name__}, so an adapter could "
            "not be merged into it; leave it out"
        )
    wrap: Any = get_peft_model  # annotated for transformers' models alone; any module with a config will do
    adapted = wrap(model, config)
    _start_values(adapted, torch.Generator().manual_seed(seed))
    return adapted.eval()


def _start_values(adapted: torch.nn.Module, generator: torch.Generator) -> None:
    """peft draws from the global state, and puts adapters where their matrices are: on the meta device they have lost theirs."""
    for module in adapted.modules():
        for name, start in ((A, _kaiming), (B, None)):
            layer = getattr(module, name, {})
            if ADAPTER in layer:
                value = torch.zeros(layer[ADAPTER].weight.shape)
                if start is not None:
                    start(value, generator)
                layer[ADAPTER].weight = torch.nn.Parameter(value)
    assert all(is_adapter(name) and not p.is_meta for name, p in adapted.named_parameters() if p.requires_grad)


def _kaiming(value: torch.Tensor, generator: torch.Generator) -> None:
    torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)


def _linear_layers(model: torch.nn.Module) -> list[str]:
    """The last parts of their names, each once."""
    kinds = ("Linear", "Conv1D")
    return list(dict.fromkeys(name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in kinds))


def _tied_layers(model: torch.nn.Module) -> set[str]:
    """The last parts of the names of modules that hold a weight which another one holds too."""
    shared = [names for names in tied_names(model).values() if len(names) > 1]
    return {name.split(".")[-2] for names in shared for name in names}
