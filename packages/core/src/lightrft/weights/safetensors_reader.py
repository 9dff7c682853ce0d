"""Reads the weights of a HF folder a few rows at a time, so that a rank holds no more than it keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lightrft.errors import ModelError
from lightrft.weights.buckets import saved_buffers, tied_names
from lightrft.weights.lora_merge import plain_name

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


class WeightFiles:
    """The safetensors of a HF folder under the names of its model's parameters and saved buffers.

    One for each model, for on the CPU what is filled may lie in the memory of the opened files. The model is *without* values: its
    parameters are on the meta device (`models.load.open_causal_lm` makes such a one). peft may have put adapters beside them, which have
    values: `take_values` gives these the same way as the files' own.

    Raises:
        ModelError: no `model.safetensors` and no index of several in the folder, or one that cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self._taken: dict[str, torch.Tensor] = {}
        self._file_of = self._index()

    def missing(self, model: nn.Module) -> list[str]:
        """What the model has and the files do not hold, or hold in another shape. Reads no values."""
        names = tied_names(model)
        wanted = {names[name]: p for name, p in model.named_parameters()} | {(name,): b for name, b in saved_buffers(model).items()}
        return [known[0] for known, tensor in wanted.items() if not self._holds(known, tensor)]

    def take_values(self, model: nn.Module) -> None:
        """Parameters of the model that have values keep them: from now on `rows` gives these, and not the files'."""
        self._taken |= {name: p.detach() for name, p in model.named_parameters() if not p.is_meta}

    def rows(self, names: Sequence[str], first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` - 1 of a parameter, under the first of its names that the files know; of a scalar, all of it."""
        if names[0] in self._taken:
            return self._taken[names[0]][first:last]
        name = self._known(names)
        file = self._file(self._file_of[name])
        found: torch.Tensor = file.get_slice(name)[first:last] if file.get_slice(name).get_shape() else file.get_tensor(name)
        return found

    def fill(self, module: nn.Module, *, prefix: str = "") -> None:
        """Gives every parameter of the module (named `prefix` + its name in the files) its whole values, on the CPU, in its own dtype."""
        for names, parameter, owners in _owned(module):
            known = [prefix + name for name in names]
            value = self.rows(known, 0, parameter.shape[0] if parameter.dim() else 1).to(parameter.dtype)
            filled = nn.Parameter(value, requires_grad=parameter.requires_grad)
            for owner, attribute in owners:
                setattr(owner, attribute, filled)

    @torch.no_grad()
    def fill_buffers(self, model: nn.Module) -> None:
        """Copies the saved buffers, which have values already: they are small, and every rank holds them whole."""
        for name, buffer in saved_buffers(model).items():
            known = self._known([name])
            buffer.copy_(self._file(self._file_of[known]).get_tensor(known))

    def _index(self) -> dict[str, str]:
        try:
            if (self.folder / INDEX).is_file():
                known: dict[str, str] = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
                return known
            return dict.fromkeys(self._file(WHOLE).keys(), WHOLE)
        except (ValueError, KeyError, OSError) as error:
            raise ModelError(f"model folder {str(self.folder)!r} has no readable {WHOLE} or {INDEX}: {error}") from error

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"model folder {str(self.folder)!r}: {name} cannot be read: {' '.join(str(error).split())}") from error
        return self._open[name]

    def _known(self, names: Sequence[str]) -> str:
        known = next((name for name in map(plain_name, names) if name in self._file_of), None)
        assert known is not None, f"{names} not in {self.folder}: `missing` was not asked"
        return known

    def _holds(self, names: Sequence[str], tensor: torch.Tensor) -> bool:
        name = next((name for name in names if name in self._file_of), None)
        return name is not None and list(self._file(self._file_of[name]).get_slice(name).get_shape()) == list(tensor.shape)


def _owned(module: nn.Module) -> list[tuple[list[str], nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Every parameter once: its names, itself, and the modules that hold it under which attribute (several where it is tied)."""
    found: dict[int, tuple[list[str], nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for attribute, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            names, _, owners = found.setdefault(id(parameter), ([], parameter, []))
            names.append(f"{path}.{attribute}" if path else attribute)
            owners.append((owner, attribute))
    return list(found.values())
