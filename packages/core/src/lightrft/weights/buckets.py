"""In what form do weights travel? Buckets of bounded size under HF parameter names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch


@dataclass(frozen=True)
class Weight:
    """One full tensor and every name it has in the model's `state_dict` (two or more where weights are tied)."""

    names: tuple[str, ...]
    tensor: torch.Tensor


WeightBucket = list[Weight]

T = TypeVar("T")


def tied_names(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """For each name of `named_parameters()`, all names under which the model's modules know that same parameter, itself first."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {name: tuple(by_identity[id(parameter)]) for name, parameter in model.named_parameters()}


def in_buckets(items: Iterable[tuple[T, int]], *, max_bytes: int) -> Iterator[list[T]]:
    """Cuts (item, bytes) pairs into lists of at most `max_bytes`, in order; an item larger than that has a list of its own."""
    bucket: list[T] = []
    held = 0
    for item, size in items:
        if bucket and held + size > max_bytes:
            yield bucket
            bucket, held = [], 0
        bucket.append(item)
        held += size
    if bucket:
        yield bucket
