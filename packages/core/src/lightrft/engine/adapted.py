"""Adapters on a transformers model that keeps its own weights: what they add to the output of each layer that has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightrft.weights.adapters import LowRank, adapter_names
from lightrft.weights.checksum import WeightChecksum, tensor_checksum


class Adapted:
    """The adapters of a model, by the names of their modules. A layer that has one adds x A^T B^T to what it gives."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._held: dict[str, LowRank] = {}
        self._hooks: list[Any] = []

    def replace(self, adapters: Mapping[str, LowRank]) -> None:
        """These, and no others from now on."""
        for hook in self._hooks:
            hook.remove()
        self._held = dict(adapters)
        self._hooks = [self._model.get_submodule(name).register_forward_hook(self._adding(name)) for name in self._held]

    def checksums(self) -> dict[tuple[str, ...], WeightChecksum]:
        """Of each A and B as it is held."""
        found: dict[tuple[str, ...], WeightChecksum] = {}
        for module, low in self._held.items():
            for name, tensor in zip(adapter_names(module), (low.a, low.b), strict=True):
                found[(name,)] = WeightChecksum(*tensor_checksum(tensor))
        return found

    def to(self, device: torch.device | str) -> None:
        """Moves them, as the model's weights are moved."""
        self._held = {name: LowRank(low.a.to(device), low.b.to(device)) for name, low in self._held.items()}

    def _adding(self, name: str) -> Any:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            low = self._held[name]
            return output + (inputs[0] @ low.a.T) @ low.b.T

        return add
