"""Is the completion exactly the reference answer?"""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.types import Sample


def exact_match(samples: Sequence[Sample]) -> list[float]:
    """1.0 where completion and answer are the same text, spaces around them aside, else 0.0. Raises ValueError without an answer."""
    return [float(sample.completion.strip() == required_answer(sample, index).strip()) for index, sample in enumerate(samples)]


def required_answer(sample: Sample, index: int) -> str:
    """The reference of a sample. Raises ValueError, which says how to give one, where it has none."""
    if sample.answer is None:
        raise ValueError(
            f"sample {index} has no reference answer (prompt {sample.prompt[:60]!r}); set label_key to the column of the answers"
        )
    return sample.answer
