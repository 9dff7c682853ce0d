"""Turns buckets into what vLLM loads. A stream of (name, tensor) that is checked as it goes and complete at its end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import torch

from lightrft.errors import WeightSyncError
from lightrft.weights.buckets import WeightBucket
from lightrft.weights.hf_names import FileNames
from lightrft_vllm.nesting import in_tree


class WeightStream:
    """Iterates over (HF name, tensor). With `copied` each is a copy that nobody reuses: vLLM's reload holds them back until a fused layer
    is whole.

    Raises (while iterated):
        WeightSyncError: a tensor of another dtype or shape, or one that the model folder does not have.
    """

    def __init__(
        self,
        buckets: Iterable[WeightBucket],
        *,
        dtype: torch.dtype,
        shapes: dict[str, tuple[int, ...]],
        names: FileNames,
        held: Collection[str],
        copied: bool = True,
    ) -> None:
        self._buckets = buckets
        self._names = names
        self._dtype = dtype
        self._shapes = shapes
        self._held = held
        self._copied = copied
        self.sent: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for bucket in self._buckets:
            for weight in self._names.convert(bucket):
                if weight.tensor.dtype != self._dtype and not weight.is_buffer:
                    raise WeightSyncError(f"{weight.names[0]} came as {weight.tensor.dtype}, the engine holds {self._dtype}")
                heard = [name for name in weight.names if self._heard(name)]
                if not heard:  # vLLM skips some of these in silence: those of a layer beyond its last one
                    raise WeightSyncError(f"{weight.names[0]} was sent, which the engine's model does not have")
                tensor = weight.tensor.detach().clone() if self._copied else weight.tensor.detach()
                for name in heard:
                    self._check(name, tensor, others=weight.names)
                    self.sent.add(name)
                    yield name, tensor

    def _heard(self, name: str) -> bool:
        """vLLM on the CPU keeps a packed lm_head even where it is tied, so it has to hear each name that it knows; of others it dies."""
        return not self._shapes or name in self._shapes or any(own == name or own.endswith(f".{name}") for own in self._held)

    def check_complete(self) -> None:
        """After the last one. Raises WeightSyncError with the names that never came."""
        missing = sorted(set(self._shapes) - self.sent)
        if missing:
            raise WeightSyncError(f"weights are incomplete: {', '.join(missing[:3])} ({len(missing)} in all) never came")

    def _check(self, name: str, tensor: torch.Tensor, *, others: tuple[str, ...]) -> None:
        if not self._shapes:
            return
        expected = next((self._shapes[n] for n in (name, *others) if n in self._shapes), None)
        if expected is None:
            raise WeightSyncError(f"{name} was sent, which the engine's model does not have")
        if expected != tuple(tensor.shape):
            raise WeightSyncError(f"{name} was sent with shape {tuple(tensor.shape)}, the engine's model has {expected}")


def own_names(model: torch.nn.Module, *, files: Collection[str]) -> dict[str, str]:
    """A folder's name of each weight to vLLM's, before it is laid into a tensor with others."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return {file: file for file in files}
    unfused = replace(mapper, orig_to_new_stacked={})
    return {file: in_tree(model, next(iter(unfused.apply_list([file])), file)) for file in files}  # public in every vLLM from 0.25 on


def pack_experts_again(model: torch.nn.Module) -> None:
    """Before new weights come to a CPU: vLLM 0.32 packs a layer's experts where it builds their kernel, once, and puts later weights into
    the same tensors unpacked. Without a kernel it builds one again.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is not None and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None
