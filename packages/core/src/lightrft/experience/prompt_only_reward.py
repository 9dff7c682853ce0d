"""A reward that does not look at the completion: completions change places between prompts, and the rewards are asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightrft.batch.stages import Rewarded
from lightrft.errors import RewardError
from lightrft.experience.scored import score_everywhere
from lightrft.rewards.load import NamedReward
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample

MOST = 8
"""Swapped samples per rank; the functions may be slow."""


def sees_prompt_only(batch: Rewarded, *, rewards: Sequence[NamedReward], strategy: StrategyBase, reward_key: str = "") -> int:
    """How many swapped samples there were, on all ranks, if each kept its reward; else 0. Collective.

    Two completions with different rewards change places, so a reward of completions has to change for one of them at least. Local pairs
    only: a rank on which all rewards are one number has none.
    """
    pairs = _swapped(batch)
    try:
        totals = score_everywhere([sample for sample, _ in pairs], rewards=rewards, strategy=strategy, reward_key=reward_key).total
    except RewardError:  # it may not like a completion of another prompt; then nothing is known
        pairs, totals = [], []
    kept = sum(total == before for total, (_, before) in zip(totals, pairs, strict=True))
    sums = strategy.all_reduce({"tried": float(len(pairs)), "kept": float(kept)}, "sum")
    return int(sums["tried"]) if sums["tried"] and sums["kept"] == sums["tried"] else 0


def _swapped(batch: Rewarded) -> list[tuple[Sample, float]]:
    """Pairs that have changed places, one after the other: a rare reward of 1 is always tried, beside the 0 that it is swapped with."""
    rows = zip(batch.group_ids.tolist(), batch.samples, batch.rewards.tolist(), strict=True)
    left = list({group: (sample, reward) for group, sample, reward in reversed(list(rows))}.values())
    swapped: list[tuple[Sample, float]] = []
    while left and len(swapped) < MOST:
        mine, reward = left.pop(0)
        at = next((i for i, (s, other) in enumerate(left) if other != reward and s.completion != mine.completion), None)
        if at is not None:
            given, other = left.pop(at)
            swapped += [(_with_answer_of(mine, given), reward), (_with_answer_of(given, mine), other)]
    return swapped


def _with_answer_of(mine: Sample, given: Sample) -> Sample:
    fields = ("completion", "finish_reason", "num_tokens", "token_ids", "raw_completion", "episode")
    return replace(mine, **{name: getattr(given, name) for name in fields})
