"""How far the log-probs of an engine and the trainer may differ by rounding alone, in the dtype and on the device where they compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bound:
    """|engine - trainer| in nats per token: of the mean, and of the largest."""

    mean: float
    largest: float


FP32_CPU = Bound(1e-4, 1e-3)
"""The same sums in another order: measured are 1e-6 to 1e-5."""
FP32_CUDA = Bound(0.0125, 0.125)
"""Kernels that take float32 into tensor cores (Triton's attention in vLLM) multiply with TF32's 10 bits of mantissa, two more than those of
bfloat16: a quarter of its bound. Measured on an H100 (vLLM against transformers): mean 0.0004 to 0.003, largest 0.001 to 0.017.
"""
HALF = Bound(0.05, 0.5)
"""bfloat16, measured there: mean 0.003 to 0.017, largest 0.015 to 0.09. A sync that went wrong is mostly off by whole nats."""


def bound_for(dtype: torch.dtype, *, device_type: str) -> Bound:
    """What rounding explains when the engine computes in `dtype`."""
    if dtype != torch.float32:
        return HALF
    return FP32_CUDA if device_type == "cuda" else FP32_CPU
