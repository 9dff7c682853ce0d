"""What is GRPO's advantage? The reward's standard score within its group, the same for every token of a completion.

A_i = (r_i - mean(r_group)) / (std(r_group) + eps), Shao et al. 2024, "DeepSeekMath", section 4.1.2 (outcome supervision).
The standard deviation is the sample's (n - 1), as in the usual implementations; the paper leaves it open.
"""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import AdvantageInput, Advantages

EPS = 1e-6


def grpo(batch: AdvantageInput) -> Advantages:
    """Groups may have any size. A group of one, or of equal rewards, has advantage 0."""
    rewards = batch.rewards.double()
    _, group, counts = torch.unique(batch.group_ids, return_inverse=True, return_counts=True)
    zeros = rewards.new_zeros(len(counts))
    mean = zeros.index_add(0, group, rewards) / counts
    centred = rewards - mean[group]
    variance = zeros.index_add(0, group, centred**2) / (counts - 1).clamp(min=1)
    advantage = centred / (variance.sqrt()[group] + EPS)
    return Advantages(advantages=(advantage[:, None] * batch.mask).float())
