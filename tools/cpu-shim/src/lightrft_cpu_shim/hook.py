"""What has to be in place before a library is imported on a CPU. One finder on `sys.meta_path` sees to it; nothing heavy here.

torchvision: the index has it for CUDA only. Its Python code registers meta kernels for operators of its extension, which cannot be loaded:
their schemas are declared instead. Others may add to `BEFORE`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
KEPT: list[Any] = []
"""A torch Library takes its operators along when it is collected."""


def declare_operators() -> None:
    import torch

    missing = [schema for schema in OPERATORS if not hasattr(torch.ops.torchvision, schema.split("(")[0])]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        KEPT.append(library)


BEFORE: dict[str, Callable[[], None]] = {"torchvision": declare_operators}
"""What is done before a module of that name runs."""


class Prepared(Loader):
    """The module's own loader, with something done before it runs."""

    def __init__(self, name: str, loader: Loader) -> None:
        self.name = name
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        BEFORE[self.name]()
        self.loader.exec_module(module)

    def __getattr__(self, attribute: str) -> Any:  # get_data and others that pkgutil and importlib.resources ask for
        return getattr(self.loader, attribute)


class Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in BEFORE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Prepared(fullname, spec.loader)
        return spec


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
