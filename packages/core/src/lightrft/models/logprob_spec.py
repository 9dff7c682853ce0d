"""What log-probabilities are asked of an output layer, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its output layer's result before it calls it logits: x -> cap * tanh(scale * x / cap)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


@dataclass(frozen=True, kw_only=True)
class LogprobSpec:
    """What is computed, and how. Logits are divided by each of `temperatures` in turn; the entropy is that at the first of them.

    `chunk_size` None is the plain implementation; a number, the fused one with so many tokens at a time.
    """

    temperatures: tuple[float, ...] = (1.0,)
    entropy: bool = False
    transform: LogitTransform = LogitTransform()
    chunk_size: int | None = None


@dataclass(frozen=True)
class LogprobColumns:
    """Tensors [S], float32 (float64 for float64 weights), in nats: log-probs for each temperature; the entropy where it was asked for."""

    logprobs: tuple[Tensor, ...]
    entropy: Tensor | None = None

    @staticmethod
    def of(columns: Sequence[Tensor], *, count: int) -> LogprobColumns:
        """`count` log-probs, then perhaps the entropy."""
        return LogprobColumns(tuple(columns[:count]), columns[count] if len(columns) > count else None)

    def all(self) -> tuple[Tensor, ...]:
        """Of which `of` makes the columns again."""
        return self.logprobs if self.entropy is None else (*self.logprobs, self.entropy)


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)
