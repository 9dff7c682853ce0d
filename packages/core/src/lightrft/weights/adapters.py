"""Adapters on their way to an engine that keeps the base weights: for each matrix A and B, the scale laid into B, under plain names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from lightrft.errors import WeightSyncError
from lightrft.weights.buckets import Weight, WeightBucket, in_buckets
from lightrft.weights.lora_merge import WRAPPER, A, Adapter, B, is_adapter, plain_name, weight_of

PARTS = (A, B)


@dataclass(frozen=True)
class LowRank:
    """What is added to a layer's output: x A^T B^T. `a` [rank, in], `b` [out, rank], of one dtype; B holds the scale (alpha / rank)."""

    a: torch.Tensor
    b: torch.Tensor


def adapter_names(module: str) -> tuple[str, str]:
    """The names of a module's A and B, as they travel.

    Example:
        >>> adapter_names("model.layers.0.mlp.up_proj")
        ('model.layers.0.mlp.up_proj.lora_A.weight', 'model.layers.0.mlp.up_proj.lora_B.weight')
    """
    return f"{module}.{A}.weight", f"{module}.{B}.weight"


def travel_name(parameter: str) -> str:
    """The name under which an adapter's parameter travels, by its name in peft's model."""
    return plain_name(parameter).removeprefix(WRAPPER)


def module_of(name: str) -> str:
    """The module that a tensor under a name of `adapter_names` adapts."""
    return name.removesuffix(".weight").rpartition(".")[0]


@torch.no_grad()
def adapters_alone(
    buckets: Iterable[WeightBucket], adapters: Mapping[str, Adapter], *, dtype: torch.dtype, max_bytes: int
) -> Iterator[WeightBucket]:
    """The adapters among these weights: B times its scale, in float32, then cast to `dtype`; everything else is left out."""
    found = (
        Weight((travel_name(weight.names[0]),), _scaled(weight, adapters).to(dtype))
        for bucket in buckets
        for weight in bucket
        if is_adapter(weight.names[0])
    )
    yield from in_buckets(((w, w.tensor.numel() * w.tensor.element_size()) for w in found), max_bytes=max_bytes)


def base_alone(buckets: Iterable[WeightBucket]) -> Iterator[WeightBucket]:
    """The weights that adapters are added to, as they are, under their plain names."""
    for bucket in buckets:
        yield [Weight(tuple(map(plain_name, w.names)), w.tensor, w.is_buffer) for w in bucket if not is_adapter(w.names[0])]


def staged_adapters(
    buckets: Iterable[WeightBucket], shapes: Mapping[str, tuple[int, int]], *, rank: int, dtype: torch.dtype, device: torch.device
) -> dict[str, LowRank]:
    """Copies of all that is sent, by module, after everything has been read and compared.

    `shapes` are (out, in) of each module that can be adapted; `rank` is the largest that there is room for.

    Raises:
        WeightSyncError: a module that is not among `shapes`, another shape, dtype or rank, or an A without its B, named.
    """
    held = {w.names[0]: w.tensor.detach().to(device, copy=True) for bucket in buckets for w in bucket}
    modules = dict.fromkeys(module_of(name) for name in held)
    problems = [problem for module in modules for problem in _problems(module, held, shapes.get(module), rank=rank, dtype=dtype)]
    if problems:
        more = f" ({len(problems)} in all)" if len(problems) > 3 else ""
        raise WeightSyncError(f"adapters refused, the old ones stay: {'; '.join(problems[:3])}{more}")
    return {module: LowRank(*(held[name] for name in adapter_names(module))) for module in modules}


def matrices_of(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of a transformers model, by its name; the model may be without values."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            rows, columns = module.get_parameter("weight").shape
            found[name] = (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)
    return found


def _scaled(weight: Weight, adapters: Mapping[str, Adapter]) -> torch.Tensor:
    name = weight.names[0]
    scale = adapters[weight_of(name)].scale if f".{B}." in name else 1.0
    return weight.tensor.float() * scale


def _problems(
    module: str, held: Mapping[str, torch.Tensor], shape: tuple[int, int] | None, *, rank: int, dtype: torch.dtype
) -> Iterator[str]:
    if shape is None:
        yield f"unknown: {module}"
        return
    a, b = (held.get(name) for name in adapter_names(module))
    if a is None or b is None:
        yield f"missing: {adapter_names(module)[0 if a is None else 1]}"
        return
    if a.shape != (a.shape[0], shape[1]) or b.shape != (shape[0], a.shape[0]):
        yield f"of another shape: {module} (here {shape[0]} x {shape[1]}, sent A {tuple(a.shape)} and B {tuple(b.shape)})"
    elif a.shape[0] > rank:
        yield f"of another rank: {module} ({a.shape[0]}, there is room for {rank})"
    if {a.dtype, b.dtype} != {dtype}:
        yield f"of another dtype: {module} (here {dtype}, sent {a.dtype} and {b.dtype})"
