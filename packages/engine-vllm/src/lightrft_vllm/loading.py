"""How new weights get into vLLM's tensors: by its loaders alone where these leave what a model runs on, else by its reload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

PAST_RELOAD = ("GptOssForCausalLM",)
"""vLLM's models whose own loaders copy some tensors (attention sinks, experts) without the loader of each: its reload, which counts on
these, drops what they copied and puts the old values back.
"""

PLAIN = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
"""vLLM's kinds of layers that on CUDA make nothing of weights after these are loaded."""


def loads_straight(model: torch.nn.Module) -> bool:
    """Whether the model runs on its tensors as the loaders fill them: nothing quantised, packed or computed from them, nothing cached of
    images. `reload_weights`, which does all of that again, takes several times as long.
    """
    return not getattr(model, "supports_multimodal", False) and all(_is_plain(module) for module in model.modules())


def _is_plain(module: torch.nn.Module) -> bool:
    method = getattr(module, "quant_method", None)
    # What has a method without having one of its own is not a layer with weights (attention's method is that of its cache).
    computes = type(module).__name__.startswith(("MLA", "Hpc")) or "MoE" in type(module).__name__
    return not computes and (method is None or type(method).__name__ in PLAIN)


@torch.no_grad()
def load_straight(model: torch.nn.Module, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Copies each tensor into its place, as it comes."""
    loader: Any = model
    loader.load_weights(stream)


def loads_past_reload(model: torch.nn.Module) -> bool:
    """Whether vLLM's reload would lose weights of this model."""
    return type(model).__name__ in PAST_RELOAD


def load_and_pack(model: torch.nn.Module, stream: Iterator[tuple[str, torch.Tensor]]) -> None:
    """On a CPU, without the reload: experts are put into their tensors as files have them, and packed there again."""
    load_straight(model, stream)
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if method is not None and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None
            method.process_weights_after_loading(layer)
