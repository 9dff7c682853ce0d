"""How often torch compiled something for this process: a backend for `torch.compile` that counts its graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_made: list[int] = []


def counting_backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """torch's own compiler (inductor), and one more graph in `graphs_made`."""
    from torch._inductor.compile_fx import compile_fx

    _made[-1] += 1
    compiled: Any = compile_fx(graph, inputs)
    made: Callable[..., Any] = compiled
    return made


def start_counting() -> None:
    """From now on `graphs_made` gives a number. Called by every rank, or by none."""
    if not _made:
        _made.append(0)


def graphs_made() -> int | None:
    """Graphs compiled through `counting_backend` so far; None where nothing is compiled. Local."""
    return _made[-1] if _made else None
