"""GRPO's advantage: the reward's standard score within its group, the same for every token of a completion.

A_i = (r_i - mean(r_group)) / (std(r_group) + eps), Shao et al. 2024, "DeepSeekMath", section 4.1.2 (outcome supervision).
The standard deviation is the sample's (n - 1), as in the usual implementations; the paper leaves it open.
"""

from __future__ import annotations

from lightrft.algorithms.groups import Groups
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import on_each_token

EPS = 1e-6


def grpo(batch: AdvantageInput) -> Advantages:
    """Groups may have any size. A group of one, or of equal rewards, has advantage 0."""
    groups = Groups.of(batch.group_ids)
    rewards = batch.rewards.double()
    centred = rewards - groups.mean(rewards)
    variance = groups.sum(centred**2) / (groups.sizes - 1).clamp(min=1)
    return Advantages(advantages=on_each_token(centred / (variance.sqrt() + EPS), batch.mask))
