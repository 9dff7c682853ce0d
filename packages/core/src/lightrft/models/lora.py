"""A model gets low-rank adapters (LoRA, arXiv:2106.09685), which alone are trained: by peft, with values that all ranks share."""

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

LINEAR = ("Linear", "Conv1D")
"""Classes of layers that take adapters."""

OUTPUTS = ("lm_head", "embed_out", "score")
OF_EXPERTS = ("experts", "gate", "w1", "w2", "w3", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""Names that peft takes for those of experts where transformers stacks these, also in the model's dense layers."""


def add_lora(model: torch.nn.Module, *, rank: int, alpha: float, target_modules: Sequence[str], seed: int) -> Any:
    """peft's model around `model`: adapters of `rank`, scaled by alpha / rank, in float32; every other parameter is frozen.

    `target_modules` are as for `targets_of`. A starts as peft's would (Kaiming, uniform), from `seed`; B at zero: the model is the one
    without adapters. `model` may be on the meta device; its adapters have values.

    Raises:
        ModelError: as `targets_of`; or peft refuses a layer.
    """
    from peft import LoraConfig, get_peft_model

    settings: Any = LoraConfig  # annotated with an int for alpha, of some versions; it divides, any number will do
    targets = targets_of(model, target_modules)
    if not isinstance(targets, str):
        targets = _linear_alone(model, targets)
    config = settings(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    wrap: Any = get_peft_model  # annotated for transformers' models alone; any module with a config will do
    try:
        adapted = wrap(model, config)
    except ValueError as error:  # layers whose kernels read the matrix past the adapter, and the like
        refused = f"lora_target_modules: peft refuses a layer of {type(model).__name__}: {' '.join(str(error).split())}"
        raise ModelError(f"{refused} Linear layers are {', '.join(_linear_layers(model)[:MAX_NAMED])}") from error
    _start_values(adapted, torch.Generator().manual_seed(seed))
    return adapted.eval()


def targets_of(model: torch.nn.Module, target_modules: Sequence[str]) -> str | list[str]:
    """What peft is told: last parts of module names, or the one word "all-linear": every linear layer but the output.

    Experts that transformers stacks in one tensor stay frozen, and so does every layer that has a name of theirs (`OF_EXPERTS`).

    Raises:
        ModelError: no layer has such a name, or one shares its weight with another, or is a stacked expert's.
    """
    everything = list(target_modules) == [ALL_LINEAR]
    linear = _linear_layers(model)
    stacked = _stacks_experts(model)
    possible = [name for name in linear if name not in (*OF_EXPERTS, *OUTPUTS)] if stacked else linear
    if everything:
        return possible if stacked else ALL_LINEAR
    experts = [target for target in target_modules if stacked and target in OF_EXPERTS]
    if experts:
        raise ModelError(
            f"lora_target_modules: {', '.join(experts)} would reach the experts of {type(model).__name__}, which are stacked in one tensor "
            f"and take no adapter here; possible: {', '.join(possible[:MAX_NAMED])}"
        )
    unmatched = [target for target in target_modules if target not in linear]
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
    return list(target_modules)


def _stacks_experts(model: torch.nn.Module) -> bool:
    """Whether a module of that name holds the matrices of several experts as one parameter."""
    return any(name.endswith("experts") and any(p.dim() == 3 for p in m.parameters(recurse=False)) for name, m in model.named_modules())


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
    named = [name for name, module in model.named_modules() if type(module).__name__ in LINEAR]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in named))


def _linear_alone(model: torch.nn.Module, targets: Sequence[str]) -> list[str]:
    """Whole names of linear layers for a target that other modules are called, too: the `proj` of Qwen-VL's patches is a convolution."""
    modules = [(name, name.rpartition(".")[2], type(module).__name__ in LINEAR) for name, module in model.named_modules()]
    others = {last for _, last, is_linear in modules if not is_linear}
    whole = [name for name, last, is_linear in modules if is_linear and last in targets and last in others]
    return [*(target for target in targets if target not in others), *whole]


def _tied_layers(model: torch.nn.Module) -> set[str]:
    """The last parts of the names of modules that hold a weight which another one holds too."""
    shared = [names for names in tied_names(model).values() if len(names) > 1]
    return {name.split(".")[-2] for names in shared for name in names}
