"""What is PPO's clipped policy loss?

-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi(a|s) / pi_old(a|s), Schulman et al. 2017,
"Proximal Policy Optimization", equation 7.
"""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput


def ppo_clip(batch: PolicyLossInput) -> PolicyLoss:
    """`clipped` marks the tokens whose gradient the clip removed."""
    ratio = (batch.logprobs - batch.old_logprobs).exp()
    plain = ratio * batch.advantages
    clipped = ratio.clamp(1 - batch.eps_clip, 1 + batch.eps_clip) * batch.advantages
    return PolicyLoss(per_token=-torch.minimum(plain, clipped), clipped=clipped < plain)
