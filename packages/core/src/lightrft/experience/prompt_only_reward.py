"""Does the reward look at the completion at all? Completions change places between prompts, and the rewards are asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightrft.errors import RewardError
from lightrft.experience.scored import score_everywhere
from lightrft.experience.trajectory import Trajectory
from lightrft.rewards.load import NamedReward
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample

MOST = 8
"""Swapped samples per rank; the functions may be slow."""


def sees_prompt_only(
    trajectories: Sequence[Trajectory], *, rewards: Sequence[NamedReward], strategy: StrategyBase, reward_key: str = ""
) -> int:
    """How many swapped samples there were, on all ranks, if each kept its reward; else 0. Collective.

    A completion is swapped for one whose own reward is another, so a reward of completions has to change. Local pairs only: a rank on
    which all rewards are one number has none.
    """
    pairs = _swapped(trajectories)
    try:
        totals = score_everywhere([sample for sample, _ in pairs], rewards=rewards, strategy=strategy, reward_key=reward_key).total
    except RewardError:  # it may not like a completion of another prompt; then nothing is known
        pairs, totals = [], []
    kept = sum(total == before for total, (_, before) in zip(totals, pairs, strict=True))
    sums = strategy.all_reduce({"tried": float(len(pairs)), "kept": float(kept)}, "sum")
    return int(sums["tried"]) if sums["tried"] and sums["kept"] == sums["tried"] else 0


def _swapped(trajectories: Sequence[Trajectory]) -> list[tuple[Sample, float]]:
    firsts = list({t.group_id: t for t in reversed(trajectories)}.values())
    pairs: list[tuple[Sample, float]] = []
    for mine in firsts:
        other = next((t for t in firsts if t.reward != mine.reward and t.sample.completion != mine.sample.completion), None)
        if other is not None and len(pairs) < MOST:
            given = other.sample
            changed = replace(mine.sample, completion=given.completion, finish_reason=given.finish_reason, num_tokens=given.num_tokens)
            pairs.append((changed, mine.reward))
    return pairs
