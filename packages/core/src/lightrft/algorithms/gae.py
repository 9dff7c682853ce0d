"""PPO's advantage: generalized advantage estimation from the critic's values, and the returns that the critic learns.

delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}, with V = 0 after the last token; returns are A + V.
Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", equations 11 and 16. The caller whitens
the advantages, as the usual implementations of PPO for language models do; the returns stay as they are.
"""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import rewards_by_token


def gae(batch: AdvantageInput) -> Advantages:
    """A completion ends with its last token, also where it was cut off. Masked tokens take no time. Needs `values`.

    Raises:
        ValueError: `values` is None.
    """
    if batch.values is None:
        raise ValueError("gae needs values [N, T] of a critic; found None")
    rewards, values = rewards_by_token(batch), batch.values.double()
    next_value = advantage = rewards.new_zeros(len(rewards))
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        here = batch.mask[:, t] > 0
        delta = rewards[:, t] + batch.gamma * next_value - values[:, t]
        advantage = torch.where(here, delta + batch.gamma * batch.lambd * advantage, advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, advantage, 0.0)
    returns = (advantages + values) * batch.mask
    return Advantages(advantages=advantages.float(), returns=returns.float(), whiten=True)
