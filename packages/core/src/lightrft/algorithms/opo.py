"""OPO's advantage: the reward minus the baseline that makes the gradient's variance smallest: its group's length-weighted mean.

A_i = r_i - sum_j l_j r_j / sum_j l_j, l the completions' lengths in tokens; Hao et al. 2025, "On-Policy RL with Optimal Reward Baseline"
(arXiv:2505.23585), equation 6 (optimal where the squared norm of a completion's gradient grows with its length). The paper has one update
per rollout: `train_batch_size` = all its completions.
"""

from __future__ import annotations

from lightrft.algorithms.groups import Groups
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import on_each_token


def opo(batch: AdvantageInput) -> Advantages:
    """A group of one, or of equal rewards, has advantage 0. Lengths are counts of the mask."""
    groups = Groups.of(batch.group_ids)
    rewards, lengths = batch.rewards.double(), batch.mask.double().sum(-1)
    baseline = groups.sum(lengths * rewards) / groups.sum(lengths).clamp(min=1)
    return Advantages(advantages=on_each_token(rewards - baseline, batch.mask))
