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

    A completion is swapped for one whose own reward is another, so a reward of completions has to change. Local pairs only: a rank on
    which all rewards are one number has none.
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
    rows = zip(batch.group_ids.tolist(), batch.samples, batch.rewards.tolist(), strict=True)
    firsts = list({group: (sample, reward) for group, sample, reward in reversed(list(rows))}.values())
    pairs: list[tuple[Sample, float]] = []
    for mine, reward in firsts:
        given = next((s for s, other in firsts if other != reward and s.completion != mine.completion), None)
        if given is not None and len(pairs) < MOST:
            changed = replace(mine, completion=given.completion, finish_reason=given.finish_reason, num_tokens=given.num_tokens)
            pairs.append((changed, reward))
    return pairs
