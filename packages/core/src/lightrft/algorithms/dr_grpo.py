"""What is Dr. GRPO's advantage? The reward minus its group's mean, without GRPO's division by the standard deviation.

A_i = r_i - mean(r_group), Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective" (arXiv:2503.20783), section 3.2.
Its other half, a loss that is not divided by a completion's own length, is `loss_aggregation` constant.
"""

from __future__ import annotations

from lightrft.algorithms.groups import Groups
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import on_each_token


def dr_grpo(batch: AdvantageInput) -> Advantages:
    """A group of one, or of equal rewards, has advantage 0."""
    rewards = batch.rewards.double()
    return Advantages(advantages=on_each_token(rewards - Groups.of(batch.group_ids).mean(rewards), batch.mask))
