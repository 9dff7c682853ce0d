"""The critic's loss: half the squared error to the returns, clipped around its values before the update.

1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), as PPO's first implementation has it (Schulman et al. 2017; Engstrom et al. 2020,
"Implementation Matters in Deep Policy Gradients", section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ValueLoss:
    """`per_token` [N, T], neither masked nor averaged; `clipped` [N, T] bool: tokens whose gradient the clip removed."""

    per_token: torch.Tensor
    clipped: torch.Tensor


def value_loss(values: torch.Tensor, *, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> ValueLoss:
    """`values` [N, T] carries the gradient; `clip` 0 is off."""
    plain = (values - returns) ** 2
    if not clip:
        return ValueLoss(plain / 2, torch.zeros_like(plain, dtype=torch.bool))
    bounded = (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2
    return ValueLoss(torch.maximum(plain, bounded) / 2, bounded > plain)


def explained_variance(sums: torch.Tensor) -> float:
    """1 - Var(R - V) / Var(R) from float64 [5]: tokens, and the sums of R, R^2, R - V and (R - V)^2; NaN where all returns are equal."""
    count, total, squared, error, error_squared = sums.tolist()
    count = max(count, 1.0)
    variance = squared / count - (total / count) ** 2
    unexplained = error_squared / count - (error / count) ** 2
    return 1.0 - unexplained / variance if variance > 1e-12 * max(squared / count, 1e-12) else float("nan")
