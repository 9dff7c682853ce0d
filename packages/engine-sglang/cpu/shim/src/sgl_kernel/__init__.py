"""A stand-in for SGLang's CUDA kernels: their names can be imported, and whoever uses one is told that there is none."""

from __future__ import annotations

from typing import Any

import torch


class NoKernelError(RuntimeError):
    """A kernel was used that exists on GPUs only."""


class Absent:
    """One name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NoKernelError(f"{self._name} was called: this environment is for tests on a CPU and has no kernels of SGLang")

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Absent(f"{self._name}.{attribute}")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"sgl_kernel.{name}")


# sglang 0.5.21 looks these up under torch.ops at import; it asks for others by hasattr, and those must stay away.
for _name in (
    "fused_gdn_gating_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_qkvzba_split_reshape_cat_cpu",
    "fused_sigmoid_gating_delta_rule_update_cpu",
    "fused_sigmoid_mul_cpu",
):
    setattr(torch.ops.sgl_kernel, _name, Absent(f"torch.ops.sgl_kernel.{_name}"))
