"""A model with adapters, as an engine that keeps the base weights is given it: the adapters alone, and once the base to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from lightrft.weights.adapters import adapters_alone, base_alone
from lightrft.weights.buckets import WeightBucket, buffer_buckets
from lightrft.weights.lora_merge import Adapter, adapters_of, plain_name

if TYPE_CHECKING:
    from lightrft.strategy.strategy_base import StrategyBase


class AdapterExport:
    """Of one model with adapters. What returns buckets is collective: every rank reads it to the end."""

    def __init__(self, strategy: StrategyBase, model: torch.nn.Module) -> None:
        self._strategy, self._model = strategy, model
        self._max_bytes = strategy.config.weight_bucket_mb * 2**20
        self._inner = strategy._unwrap(model)
        self._adapters: dict[str, Adapter] = adapters_of(self._inner)

    @property
    def modules(self) -> list[str]:
        """The adapted ones, by their names in the model without adapters; none where it has no adapters. Not collective."""
        return [name.removesuffix(".weight") for name in self._adapters]

    def adapters(self, dtype: torch.dtype) -> Iterator[WeightBucket]:
        """A and B of each module, as `InferenceEngine.update_adapters` takes them; nothing else is gathered."""
        yield from adapters_alone(
            self._strategy._export_adapters(self._model, self._max_bytes), self._adapters, dtype=dtype, max_bytes=self._max_bytes
        )

    def base(self, dtype: torch.dtype) -> Iterator[WeightBucket]:
        """Every weight but the adapters, and the saved buffers, as `StrategyBase.export_weights` of the model without adapters."""
        yield from base_alone(self._strategy._export_weights(self._model, dtype, self._max_bytes))
        yield from buffer_buckets(self._inner, max_bytes=self._max_bytes, rename=plain_name)
