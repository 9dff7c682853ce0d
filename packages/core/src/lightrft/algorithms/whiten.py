"""Brings advantages to mean 0 and standard deviation 1 over all ranks. By sums that the caller adds up over ranks."""

from __future__ import annotations

import math

import torch

EPS = 1e-8


def moment_sums(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float64 [3]: tokens, sum and sum of squares of `values` [N, T] where the mask is 1."""
    kept = values.double()[mask > 0]
    return torch.stack([torch.tensor(float(len(kept)), dtype=torch.float64), kept.sum(), (kept * kept).sum()])


def whitened(values: torch.Tensor, mask: torch.Tensor, *, sums: torch.Tensor) -> torch.Tensor:
    """float32 [N, T]: (values - mean) / std under the mask, of `moment_sums` added up over ranks; the sample's variance (n - 1).

    Fewer than two tokens, or all of one value, give 0.
    """
    count, total, squared = sums.tolist()
    mean = total / max(count, 1.0)
    variance = max(squared - count * mean * mean, 0.0) / max(count - 1.0, 1.0)
    standard: torch.Tensor = (values.double() - mean) / (math.sqrt(variance) + EPS)
    return (standard * mask).float()
