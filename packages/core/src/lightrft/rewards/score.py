"""What each sample is worth: calls the reward functions and refuses whatever is not one finite number, or None, for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from lightrft.errors import CodePermissionError, RewardError, RewardServerError
from lightrft.rewards.calling import put_back, settled
from lightrft.rewards.import_file import place, said
from lightrft.rewards.load import NamedReward
from lightrft.rewards.route import routed
from lightrft.types import Sample
from lightrft.utils.permission import code_execution

LARGEST = 3.4e38


@dataclass(frozen=True, kw_only=True)
class Scores:
    """`total`: the weighted sum for each sample; `parts`: for each reward by name its own numbers, None where it does not count."""

    total: list[float]
    parts: dict[str, list[float | None]]


def score(samples: Sequence[Sample], *, rewards: Sequence[NamedReward], reward_key: str = "", names: Sequence[str] = ()) -> Scores:
    """Scores the samples, in order. Not collective. A reward that counts for no sample is not called.

    `reward_key` names the column of the rows that says which rewards count (see `route`); `names` are all that may stand there, by default
    these rewards'.

    Raises:
        RewardServerError: a reward's server gave no rewards.
        CodePermissionError: a function would run a model's programs, and may not.
        RewardError: a function raised or called sys.exit (chained; the user's file and line), or returned the wrong length or something
            that is no finite number (which sample); or a row names no reward.
    """
    parts: dict[str, list[float | None]] = {}
    for reward in rewards:
        at = concerned(samples, name=reward.name, names=names or [r.name for r in rewards], reward_key=reward_key)
        mine = [samples[index] for index in at]
        parts[reward.name] = spread(_call(reward, mine) if mine else [], at, number=len(samples))
    return summed(parts, rewards=rewards, number=len(samples))


def concerned(samples: Sequence[Sample], *, name: str, names: Sequence[str], reward_key: str) -> list[int]:
    """The places of the samples for which reward `name` counts. Raises RewardError where a row names no reward."""
    if not reward_key:
        return list(range(len(samples)))
    at = []
    for index, sample in enumerate(samples):
        try:
            if name in routed(sample.row, reward_key=reward_key, names=names):
                at.append(index)
        except ValueError as error:
            raise RewardError(f"sample {index} (prompt {sample.prompt[:60]!r}): {error}") from None
    return at


def not_applicable(scores: Scores, samples: Sequence[Sample], *, reward_key: str = "") -> dict[str, int]:
    """For each reward by name: of how many of the samples that it counts for it said None."""
    names = list(scores.parts)
    return {
        name: sum(values[index] is None for index in concerned(samples, name=name, names=names, reward_key=reward_key))
        for name, values in scores.parts.items()
    }


def spread(values: Sequence[float | None], at: Sequence[int], *, number: int) -> list[float | None]:
    """The values at their places, None elsewhere."""
    out: list[float | None] = [None] * number
    for index, value in zip(at, values, strict=True):
        out[index] = value
    return out


def summed(parts: dict[str, list[float | None]], *, rewards: Sequence[NamedReward], number: int) -> Scores:
    """The weighted sums of what counts. Raises RewardError where one is beyond what float32 holds, in which advantages are worked out."""
    weights = {reward.name: reward.weight for reward in rewards}
    rows = [[(weights[name], values[index]) for name, values in parts.items()] for index in range(number)]
    total = [_sum(weight * value for weight, value in row if value is not None) for row in rows]
    for index, value in enumerate(total):
        if not abs(value) <= LARGEST:
            own = ", ".join(f"{name} {values[index]!r} x {weights[name]:g}" for name, values in parts.items() if values[index] is not None)
            raise RewardError(
                f"the rewards of sample {index} of {number} add up to {value!r} ({own}), beyond what float32 holds; scale them"
            )
    return Scores(total=total, parts=parts)


def _sum(values: Iterable[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _call(reward: NamedReward, samples: Sequence[Sample]) -> list[float | None]:
    try:
        with code_execution(reward.may_run_code), put_back():
            # A list of its own: a function that sorts or pops must not disturb the next one.
            answer: Any = settled(reward.function(list(samples)))
            if not isinstance(answer, (str, bytes, Mapping, Set)) and hasattr(answer, "__iter__"):
                answer = list(answer)
    except (RewardServerError, CodePermissionError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a task that was cancelled is no Exception either
        raised = "failed: " if isinstance(error, SystemExit) else "raised "
        raise RewardError(f"reward {reward.name!r} {raised}{said(error)} (on {len(samples)} samples){place(error)}") from error
    return checked(answer, samples, name=reward.name)


def checked(values: Any, samples: Sequence[Sample], *, name: str) -> list[float | None]:
    """The answer of reward `name` as floats, None where it does not apply. Raises RewardError where it is not one finite number, or None,
    for each sample.
    """
    wanted = f"expected one number for each of {len(samples)} samples"
    if not isinstance(values, list):
        raise RewardError(f"reward {name!r} returned {_shown(values)}, a {type(values).__name__}; {wanted}")
    if len(values) != len(samples):
        raise RewardError(f"reward {name!r} returned {len(values)} numbers; {wanted}")
    numbers = [_number(value) for value in values]
    for index, (number, value) in enumerate(zip(numbers, values, strict=True)):
        if number is None and value is not None:
            raise RewardError(
                f"reward {name!r} returned {_shown(value)} for sample {index} of {len(samples)}; expected a finite number; "
                f"its completion begins {samples[index].completion[:60]!r}"
            )
    return numbers


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except Exception as error:  # the user's own class
        return f"an object whose __repr__ raises {type(error).__name__}"


def _number(value: Any) -> float | None:
    """A finite float of any kind of real number (bool, numpy, one-element tensor), else None."""
    if value is None or isinstance(value, (str, bytes)):  # float("1.0") would pass a bug on
        return None
    try:
        number = float(value)
    except Exception:  # the user's own class may raise anything
        return None
    return number if math.isfinite(number) else None
