"""How evenly a model's routers use its experts, sequence by sequence, so that the number is one whatever the micro-batches are.

The sequence-wise balance loss of DeepSeek-V3 (arXiv:2412.19437, equations 17 to 20), for routers with a softmax over their experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.errors import ModelError

ROUTER = "topkrouter"
"""What the classes of transformers' routers end with; such a one gives logits [S, E], weights, and the experts it chose, [S, K]."""


@dataclass(frozen=True)
class Route:
    """Of one router in one forward pass, over S tokens: `logits` [S, E], `chosen` int64 [S, K]."""

    logits: torch.Tensor
    chosen: torch.Tensor


def routers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """In the order of the layers.

    Raises:
        ModelError: the model has none, or its routers score by something else than a softmax.
    """
    found = [module for module in model.modules() if any(c.__name__.lower().endswith(ROUTER) for c in type(module).__mro__)]
    other = [module for module in found if hasattr(module, "e_score_correction_bias")]
    if not found or other:
        what = f"routers of class {type(other[0]).__name__}, balanced by a bias" if other else "no routers"
        raise ModelError(f"router_balance_coef: {type(model).__name__} has {what}; leave it out")
    return found


@contextmanager
def routes_of(model: torch.nn.Module) -> Iterator[list[Route]]:
    """What each router does in the forward pass inside of this, with its graph."""
    found: list[Route] = []

    def keep(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        found.append(Route(outputs[0], outputs[-1]))

    hooks = [router.register_forward_hook(keep) for router in routers_of(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def balance(routes: Sequence[Route], *, at: torch.Tensor, rows: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """float32 []: the sum over sequences of E sum_e f_e P_e, mean over the routers; 1 for each sequence where all experts get the same.

    f_e is the fraction of a sequence's choices that went to expert e, P_e the mean probability of e. `at` int64 [M]: the tokens that count;
    `rows` int64 [M]: the sequence of each. Gradients flow through P alone. A sequence without tokens adds 0.
    """
    counts = torch.bincount(rows, minlength=num_sequences).clamp(min=1)[:, None]
    total = torch.zeros((), device=at.device)
    for route in routes:
        probabilities = route.logits.flatten(0, -2)[at].float().softmax(-1)
        chosen = route.chosen.flatten(0, -2)[at]
        picked = torch.zeros_like(probabilities).scatter(1, chosen, 1.0)
        nothing = probabilities.new_zeros(num_sequences, probabilities.shape[1])
        fractions = nothing.index_add(0, rows, picked) / (counts * chosen.shape[1])
        means = nothing.index_add(0, rows, probabilities) / counts
        total = total + probabilities.shape[1] * (fractions * means).sum()
    return total / len(routes)
