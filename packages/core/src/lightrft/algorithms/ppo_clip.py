"""PPO's clipped policy loss.

-min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) with rho = pi(a|s) / pi_old(a|s), Schulman et al. 2017, "Proximal Policy Optimization
Algorithms", equation 7. An upper bound of its own ("clip-higher") is that of Yu et al. 2025, "DAPO" (arXiv:2503.14476), equation 10.
With `dual_clip` c > 1 the loss of a negative advantage is at most -c A: Ye et al. 2020, "Mastering Complex Control in MOBA Games with Deep
Reinforcement Learning" (arXiv:1912.09729), equation 4.
"""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput


def ppo_clip(batch: PolicyLossInput) -> PolicyLoss:
    """`clipped` marks the tokens whose gradient a clip removed."""
    ratio = (batch.logprobs - batch.old_logprobs).exp()
    plain = ratio * batch.advantages
    bounded = ratio.clamp(1 - batch.eps_clip_low, 1 + batch.eps_clip_high) * batch.advantages
    gain, clipped = torch.minimum(plain, bounded), bounded < plain
    if batch.dual_clip:
        floor = batch.dual_clip * batch.advantages
        beyond = (batch.advantages < 0) & (gain < floor)
        gain, clipped = torch.where(beyond, floor, gain), clipped | beyond
    return PolicyLoss(per_token=-gain, clipped=clipped)
