"""The weights of a model with adapters, as those of a plain model. Merged: W + scale B A (LoRA, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.weights.buckets import Weight, WeightBucket, in_buckets

WRAPPER, BASE, ADAPTER = "base_model.model.", "base_layer", "default"
"""What peft puts before, and into, the names of a model's parameters, and how it calls its first adapter."""

A, B = "lora_A", "lora_B"


@dataclass(frozen=True)
class Adapter:
    """How the adapter of one matrix counts. `transposed`: the matrix is held as [in, out] (transformers' Conv1D)."""

    scale: float
    transposed: bool


def plain_name(name: str) -> str:
    """A parameter's name in the model without adapters; of an adapter's matrix, the name that it has in peft's files."""
    parts = name.removeprefix(WRAPPER).split(".")
    if parts[-3:-2] in ([A], [B]) and parts[-2] == ADAPTER:
        return WRAPPER + ".".join([*parts[:-2], parts[-1]])
    return ".".join(part for part in parts if part != BASE)


def adapters_of(model: torch.nn.Module) -> dict[str, Adapter]:
    """For each matrix with an adapter, its name in the model without adapters; empty where there are none."""
    found: dict[str, Adapter] = {}
    for name, module in model.named_modules():
        if hasattr(module, A) and ADAPTER in getattr(module, A):
            layer: Any = module
            found[plain_name(f"{name}.weight")] = Adapter(float(layer.scaling[ADAPTER]), bool(layer.fan_in_fan_out))
    return found


@torch.no_grad()
def merged(
    buckets: Iterable[WeightBucket], adapters: dict[str, Adapter], *, dtype: torch.dtype | None, max_bytes: int
) -> Iterator[WeightBucket]:
    """Buckets of whole weights with adapters among them become buckets without: merged in float32, then cast to `dtype`.

    A matrix waits until its adapter has come: beyond the buckets, one matrix is held. The model's own weights stay as they are.
    """
    weights = _merged(buckets, adapters, dtype)
    sized = ((weight, weight.tensor.numel() * weight.tensor.element_size()) for weight in weights)
    yield from in_buckets(sized, max_bytes=max_bytes)


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's."""
    return f".{A}." in name or f".{B}." in name


def _merged(buckets: Iterable[WeightBucket], adapters: dict[str, Adapter], dtype: torch.dtype | None) -> Iterator[Weight]:
    waiting: dict[str, dict[str, Weight]] = {}
    for bucket in buckets:
        for weight in bucket:
            matrix, part = _role(weight.names[0], adapters)
            if not part:
                yield Weight(tuple(map(plain_name, weight.names)), weight.tensor.to(dtype or weight.tensor.dtype))
                continue
            parts = waiting.setdefault(matrix, {})
            parts[part] = weight
            if len(parts) == 3:
                yield _merge(waiting.pop(matrix), adapters[matrix], dtype)
    assert not waiting, f"adapters without their matrices, or the reverse: {sorted(waiting)}"


def weight_of(name: str) -> str:
    """The weight that a parameter is, or that it adapts, by its name in the model without adapters."""
    if not is_adapter(name):
        return plain_name(name)
    return plain_name(name).removeprefix(WRAPPER).removesuffix(".weight").rpartition(".")[0] + ".weight"


def _role(name: str, adapters: dict[str, Adapter]) -> tuple[str, str]:
    """The matrix that a parameter belongs to, and what it is there: itself (`base_layer`), A or B; no part for any other parameter."""
    if is_adapter(name):
        matrix, _, part = plain_name(name).removeprefix(WRAPPER).removesuffix(".weight").rpartition(".")
        return f"{matrix}.weight", part
    plain = plain_name(name)
    return (plain, BASE) if plain in adapters else (plain, "")


def _merge(parts: dict[str, Weight], adapter: Adapter, dtype: torch.dtype | None) -> Weight:
    base = parts[BASE]
    delta = parts[B].tensor.float() @ parts[A].tensor.float()
    whole = base.tensor.float() + adapter.scale * (delta.T if adapter.transposed else delta)
    return Weight(tuple(map(plain_name, base.names)), whole.to(dtype or base.tensor.dtype))
