"""How new weights get into vLLM's tensors: by its loaders alone where these leave what a model runs on, else by its reload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

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
