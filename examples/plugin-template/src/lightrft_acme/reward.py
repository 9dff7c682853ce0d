"""The reward `acme`: the fraction of characters that are right."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.types import Sample


def fraction_right(samples: Sequence[Sample]) -> list[float]:
    """One finite number for each sample, in order; the sample's `answer` is the data's `label_key` column."""
    return [_fraction(sample.completion, sample.answer or "") for sample in samples]


def _fraction(given: str, wanted: str) -> float:
    return sum(a == b for a, b in zip(given, wanted, strict=False)) / max(len(given), len(wanted), 1)
