"""Names of a part that vLLM has one level deeper than transformers 5 saves it: what it loads gets the level that its own modules have.

transformers 5 has CLIP and SigLIP as `vision_tower.encoder`, vLLM 0.32 as `vision_tower.vision_model.encoder`, and so the hub's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

Weights = Iterable[tuple[str, torch.Tensor]]


def insert_missing_levels() -> None:
    """For the whole process, as syncs load weights again: a name that cannot be below a module, since all that this module has is another
    one, is looked for below that one. A name that has the level, as the hub's files do, stays.
    """
    from vllm.model_executor.models.utils import AutoWeightsLoader

    loader: Any = AutoWeightsLoader
    load = loader._load_module
    if getattr(load, "inserts_levels", False):
        return

    def load_deeper(self: Any, base_prefix: str, module: torch.nn.Module, weights: Weights) -> Iterable[str]:
        level = sole_level(module) if module is not self.module else None
        found: Iterable[str] = load(self, base_prefix, module, weights if level is None else _below(level, weights))
        return found

    load_deeper.inserts_levels = True  # type: ignore[attr-defined]  # a mark of ours
    loader._load_module = load_deeper


def in_tree(model: torch.nn.Module, name: str) -> str:
    """The name with the levels that `insert_missing_levels` puts in, where what it names is found below them."""
    found: list[str] = []
    module: Any = model
    for piece in name.split("."):
        level = sole_level(module) if module is not None and module is not model else None
        if level not in (None, piece) and hasattr(getattr(module, str(level)), piece):
            found.append(str(level))
            module = getattr(module, str(level))
        found.append(piece)
        module = getattr(module, piece, None) if isinstance(module, torch.nn.Module) else None
    return ".".join(found)


def sole_level(module: Any) -> str | None:
    """The name of a module's only child, where it has neither tensors nor a loader of its own; a list's numbers are no levels."""
    if not isinstance(module, torch.nn.Module) or module._parameters or module._buffers or hasattr(module, "load_weights"):
        return None
    names = list(module._modules)
    return names[0] if len(names) == 1 and not names[0].isdigit() else None


def _below(level: str, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        yield (name if name.split(".")[0] == level else f"{level}.{name}"), tensor
