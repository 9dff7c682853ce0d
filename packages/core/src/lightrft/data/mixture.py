"""Several sources in one stream of prompts, each with its fraction: which source is next follows from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby

from lightrft.data.prompts import Prompt
from lightrft.errors import ConfigError


@dataclass(frozen=True)
class Mixture:
    """Sources of `sizes` rows each, that lie one after another, and their `weights`, in any unit.

    The k-th row of a source (k from 0) stands at the time (2k + 1) / weight, and the stream is all rows by time, of two at one time
    that of the earlier source first. So every stretch of the stream, such as a rollout, has the fractions of the weights, but for a row or
    so. (As a rule for seats this is Webster's, or Sainte-Laguë's.)

    Example:
        >>> mixture, stream = Mixture(sizes=(6, 2), weights=(3, 1)), []
        >>> for _ in range(8):
        ...     stream.append(mixture.following([stream.count(0), stream.count(1)]))
        >>> stream
        [0, 0, 1, 0, 0, 0, 1, 0]
        >>> mixture.epoch_rows
        8
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    names: tuple[str, ...] = ("",)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Half the time between two rows of each source, in whole numbers: equal weights meet exactly, whatever their unit."""
        inverse = [1 / Fraction(str(weight)) for weight in self.weights]
        unit = math.lcm(*(one.denominator for one in inverse))
        whole = [int(one * unit) for one in inverse]
        return tuple(one // math.gcd(*whole) for one in whole)

    def following(self, taken: Sequence[int]) -> int:
        """The source of the next row, after so many rows of each."""
        return min(range(len(self.sizes)), key=lambda source: (2 * taken[source] + 1) * self.strides[source])

    @cached_property
    def epoch_rows(self) -> int:
        """Rows of the stream in one pass: until every row of every source was taken, those of small sources with large weights more often
        (`stopping_strategy="all_exhausted"` of `datasets.interleave_datasets`).
        """
        return max(self._position_of_last(source) for source in range(len(self.sizes)))

    def _position_of_last(self, source: int) -> int:
        """How long the stream is when it has taken each row of that source once."""
        last = (2 * self.sizes[source] - 1) * self.strides[source]
        # Of the others, the rows before that time; at that time, those of earlier sources.
        return sum(((last - (other > source)) // stride + 1) // 2 for other, stride in enumerate(self.strides))

    def in_words(self) -> str:
        """The fractions, for the console."""
        total = sum(self.weights)
        fractions = [
            f"{name} {weight / total:.1%} ({size} rows)" for name, weight, size in zip(self.names, self.weights, self.sizes, strict=True)
        ]
        return f"each rollout draws on {', '.join(fractions)}; a pass, until every row was taken, is {self.epoch_rows} prompts"


def mixture_of(prompts: Sequence[Prompt], weights: Sequence[float]) -> Mixture:
    """Of prompts that lie source after source; without weights they are one source.

    Raises:
        ConfigError: another number of weights than of sources.
    """
    if not weights:
        return Mixture((len(prompts),))
    found = [(name, len(list(group))) for name, group in groupby(prompts, key=lambda prompt: prompt.source)]
    if len(found) != len(weights):
        raise ConfigError([f"prompt_data_weights has {len(weights)} numbers, and the prompts have {len(found)} sources; give one for each"])
    return Mixture(tuple(size for _, size in found), tuple(weights), tuple(name for name, _ in found))
