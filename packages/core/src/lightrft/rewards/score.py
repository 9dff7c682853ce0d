"""What is each sample worth? Calls the reward functions and refuses whatever is not one finite number for each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.errors import RewardError, RewardServerError
from lightrft.rewards.load import NamedReward
from lightrft.types import Sample


@dataclass(frozen=True, kw_only=True)
class Scores:
    """`total`: the weighted sum for each sample; `parts`: for each reward by name, its own unweighted numbers."""

    total: list[float]
    parts: dict[str, list[float]]


def score(samples: Sequence[Sample], *, rewards: Sequence[NamedReward]) -> Scores:
    """Scores the samples, in order. Not collective. Without samples no function is called.

    Raises:
        RewardServerError: a reward's server gave no rewards.
        RewardError: a function raised (chained), or returned the wrong length or something that is no finite number (which sample).
    """
    parts = {reward.name: _call(reward, samples) if samples else [] for reward in rewards}
    weights = {reward.name: reward.weight for reward in rewards}
    total = [math.fsum(weights[name] * values[i] for name, values in parts.items()) for i in range(len(samples))]
    return Scores(total=total, parts=parts)


def _call(reward: NamedReward, samples: Sequence[Sample]) -> list[float]:
    wanted = f"expected one number for each of {len(samples)} samples"
    try:
        # A list of its own: a function that sorts or pops must not disturb the next one.
        answer: Any = reward.function(list(samples))
        values = None if isinstance(answer, (str, bytes, Mapping)) or not hasattr(answer, "__iter__") else list(answer)
    except RewardServerError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RewardError(f"reward {reward.name!r} raised {reason} (on {len(samples)} samples)") from error
    if values is None:
        raise RewardError(f"reward {reward.name!r} returned {answer!r:.60}, a {type(answer).__name__}; {wanted}")
    if len(values) != len(samples):
        raise RewardError(f"reward {reward.name!r} returned {len(values)} numbers; {wanted}")
    numbers = [_number(value) for value in values]
    for index, (number, value) in enumerate(zip(numbers, values, strict=True)):
        if number is None:
            raise RewardError(
                f"reward {reward.name!r} returned {value!r:.60} for sample {index} of {len(samples)}; expected a finite number; "
                f"its completion begins {samples[index].completion[:60]!r}"
            )
    return [number for number in numbers if number is not None]


def _number(value: Any) -> float | None:
    """A finite float of any kind of real number (bool, numpy, one-element tensor), else None."""
    if isinstance(value, (str, bytes)):  # float("1.0") would pass a bug on
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
