"""What the environment of an episode gave."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightrft.types import Sample


def environment_reward(samples: Sequence[Sample]) -> list[float | None]:
    """The sum of the environment's rewards over all turns and parts; None where the environment failed.

    Raises ValueError for a sample that no environment made.
    """
    return [_of_episode(sample, index) for index, sample in enumerate(samples)]


def _of_episode(sample: Sample, index: int) -> float | None:
    if sample.episode is None:
        raise ValueError(f"sample {index} is of no episode (prompt {sample.prompt[:60]!r}); set environment, or leave this reward out")
    return None if sample.episode.error else math.fsum(sample.episode.rewards.values())
