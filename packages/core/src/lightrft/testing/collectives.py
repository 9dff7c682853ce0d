"""Counts the collectives that a piece of code starts, and their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACES = ("c10d", "_c10d_functional")
NO_TRAFFIC = ("wait_tensor", "monitored_barrier_")


class CountedCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not annotated it
    """Counts, inside its `with` block and in this thread, the collectives of this rank by name, and the bytes of the larger side of each.

    The larger side is what an all-gather gives and a reduce-scatter takes. On the CPU a backward pass runs in this thread too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if func.namespace in NAMESPACES and name not in NO_TRAFFIC:
            self.calls[name] += 1
            self.bytes[name] += max(_sizes(args), default=0)
        return func(*args, **(kwargs or {}))


def _sizes(args: Any) -> Iterator[int]:
    """Bytes of each argument: of a tensor, or of the tensors of a list together."""
    for argument in args:
        tensors = [leaf for leaf in tree_leaves(argument) if isinstance(leaf, torch.Tensor)]
        yield sum(tensor.numel() * tensor.element_size() for tensor in tensors)
