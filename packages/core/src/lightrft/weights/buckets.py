"""Weights travel in buckets of bounded size, under the names of the model's state dict: its parameters and the buffers that it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch


@dataclass(frozen=True)
class Weight:
    """One full tensor and every name it has in the model's `state_dict` (two or more where weights are tied).

    `is_buffer`: a buffer of the state dict, such as the bias of a router or a layer's scale. It is in the dtype in which the actor
    holds it, also where parameters are cast on their way: an engine keeps some of them in float32 whatever its own dtype is.
    """

    names: tuple[str, ...]
    tensor: torch.Tensor
    is_buffer: bool = False


WeightBucket = list[Weight]

T = TypeVar("T")


def tied_names(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """For each name of `named_parameters()`, all names under which the model's modules know that same parameter, itself first."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {name: tuple(by_identity[id(parameter)]) for name, parameter in model.named_parameters()}


def saved_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that `save_pretrained` would write, by name; not rotary tables and the like, which come from the configuration.

    They share memory with the model. Every rank holds them whole under every strategy.
    """
    kept = model.state_dict(keep_vars=True).keys() - set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def buffer_buckets(model: torch.nn.Module, *, max_bytes: int, rename: Callable[[str], str]) -> Iterator[WeightBucket]:
    """The saved buffers as weights under `rename` of their names, in their own dtype. Not collective."""
    sized = ((item, item[1].numel() * item[1].element_size()) for item in saved_buffers(model).items())
    for bucket in in_buckets(sized, max_bytes=max_bytes):
        yield [Weight((rename(name),), buffer.detach(), is_buffer=True) for name, buffer in bucket]


def everything(name: str) -> bool:
    """Of an export: no parameter is left out."""
    return True


def in_buckets(items: Iterable[tuple[T, int]], *, max_bytes: int) -> Iterator[list[T]]:
    """Splits (item, bytes) pairs into lists of at most `max_bytes`, in order; an item larger than that has a list of its own."""
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
