"""REINFORCE++'s advantage: the discounted return of each token, standardised over the *whole* batch of all ranks.

A_t = sum_{k >= t} gamma^(k - t) r_k with the reward on the last token and, with `kl_in` reward, a KL penalty on each; then
(A - mean) / std over all tokens. Hu et al. 2025, "REINFORCE++" (arXiv:2501.03262), sections 3.1 and 3.2. The variant with a baseline
subtracts the mean reward of the prompt's completions first (the same paper, "REINFORCE++-baseline").
"""

from __future__ import annotations

import torch

from lightrft.algorithms.groups import Groups
from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import discounted_returns, rewards_by_token


def reinforce_pp(batch: AdvantageInput) -> Advantages:
    """Groups play no part; the caller whitens."""
    return _returns(batch, rewards_by_token(batch))


def reinforce_pp_baseline(batch: AdvantageInput) -> Advantages:
    """The group's mean is taken off the last token's reward. A group of one has its own reward as its baseline, and earns 0 by it."""
    rewards = batch.rewards.double()
    baseline = AdvantageInput(rewards=Groups.of(batch.group_ids).mean(rewards), group_ids=batch.group_ids, mask=batch.mask)
    return _returns(batch, rewards_by_token(batch) - rewards_by_token(baseline))


def _returns(batch: AdvantageInput, rewards: torch.Tensor) -> Advantages:
    return Advantages(advantages=discounted_returns(rewards, batch.mask, gamma=batch.gamma).float(), whiten=True)
