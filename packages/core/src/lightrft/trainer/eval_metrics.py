"""Metrics of n samples of one prompt: pass@k, maj@k, and which answers count as the same vote. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightrft.rewards.final_answer import final_answer
from lightrft.rewards.plain_text import plain
from lightrft.rewards.quantity import quantity

VOTE_CHARS = 200
"""A text without a final answer that is longer is no vote."""


def pass_at_k(*, num_samples: int, num_right: int, k: int) -> float:
    """Chance that at least one of k samples is right, k drawn from the n without replacement: 1 - C(n - c, k) / C(n, k), the unbiased
    estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374), equation 1.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} is not between 1 and the number of samples, {num_samples}")
    if not 0 <= num_right <= num_samples:
        raise ValueError(f"num_right={num_right} is not between 0 and the number of samples, {num_samples}")
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_right + 1, num_samples + 1))


def majority_at_k(votes: Sequence[str | None], right: Sequence[bool], *, k: int) -> float:
    """Chance that the most frequent answer of k samples is right (self-consistency, Wang et al. 2022, arXiv:2203.11171).

    The mean over the n // k disjoint blocks of k samples, in order. Of equally frequent answers each is taken with the same chance; None
    is no vote, and where nobody votes nothing is right. Right is an answer by the fraction of its samples that are.

    Raises:
        ValueError: not 1 <= k <= n, or lengths that differ.
    """
    if len(votes) != len(right):
        raise ValueError(f"{len(votes)} votes but {len(right)} judgements; one for each is needed")
    if not 1 <= k <= len(votes):
        raise ValueError(f"k={k} is not between 1 and the number of samples, {len(votes)}")
    starts = range(0, len(votes) - k + 1, k)
    return sum(_majority(votes[i : i + k], right[i : i + k]) for i in starts) / len(starts)


def vote_of(completion: str) -> str | None:
    """The answer of a completion so that equal answers are equal texts: its final answer, as a number where it is one, else its text."""
    answer = final_answer(completion)
    if answer is None:
        answer = completion if len(completion) <= VOTE_CHARS else ""
    number = quantity(answer)
    if number is not None:
        return f"{number.value}{'%' if number.percent else ''}"
    return " ".join(plain(answer).casefold().split()) or None


def _majority(votes: Sequence[str | None], right: Sequence[bool]) -> float:
    judged: dict[str, list[bool]] = {}
    for vote, is_right in zip(votes, right, strict=True):
        if vote is not None:
            judged.setdefault(vote, []).append(is_right)
    if not judged:
        return 0.0
    most = max(map(len, judged.values()))
    fractions = [sum(found) / len(found) for found in judged.values() if len(found) == most]
    return sum(fractions) / len(fractions)
