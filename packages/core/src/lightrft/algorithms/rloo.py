"""RLOO's advantage: the reward minus the mean reward of the *other* completions of its prompt (leave one out).

A_i = r_i - 1 / (k - 1) sum_{j != i} r_j, Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from
Human Feedback in LLMs" (arXiv:2402.14740), equation 8; Kool et al. 2019.
"""

from __future__ import annotations

import torch

from lightrft.algorithms.groups import Groups
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import on_each_token


def rloo(batch: AdvantageInput) -> Advantages:
    """A group of one has no other to compare with, and advantage 0."""
    groups = Groups.of(batch.group_ids)
    rewards = batch.rewards.double()
    others = (groups.sum(rewards) - rewards) / (groups.sizes - 1).clamp(min=1)
    advantage = torch.where(groups.sizes > 1, rewards - others, 0.0)
    return Advantages(advantages=on_each_token(advantage, batch.mask))
