"""Whether the completion is exactly the reference answer."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.types import Sample


def exact_match(samples: Sequence[Sample]) -> list[float]:
    """1.0 where completion and answer, or one of several accepted ones, are the same text, spaces around them aside, else 0.0.

    Raises ValueError without an answer.
    """
    return [
        float(sample.completion.strip() in [answer.strip() for answer in required_answers(sample, index)])
        for index, sample in enumerate(samples)
    ]


def required_answers(sample: Sample, index: int) -> tuple[str, ...]:
    """The accepted answers of a sample. Raises ValueError, which says how to give one, where it has none."""
    if not sample.accepted:
        raise ValueError(
            f"sample {index} has no reference answer (prompt {sample.prompt[:60]!r}); set label_key to the column of the answers"
        )
    return sample.accepted
