"""GSPO's policy losses: PPO's clip on one ratio for a whole completion: the geometric mean of its tokens' ratios.

s_i = (pi(y_i|x) / pi_old(y_i|x))^(1 / |y_i|), loss -min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i): Zheng et al. 2025, "Group
Sequence Policy Optimization" (arXiv:2507.18071), equations 5 and 7. GSPO-token, equations 13 and 14, has the same value, s_i,t = sg[s_i]
pi_t / sg[pi_t], and lets each token have its own advantage. The paper takes the mean over completions (`loss_aggregation` sequence_mean)
and clips far nearer to 1 than PPO (3e-4 and 4e-4).
"""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.tokens import mean_over_tokens


def gspo(batch: PolicyLossInput) -> PolicyLoss:
    """A completion's advantage is the mean of its tokens': they are equal for all estimators but those with a critic or a discount."""
    log_ratio = mean_over_tokens(batch.logprobs - batch.old_logprobs, batch.mask)
    return _clipped(log_ratio.exp().expand_as(batch.mask), mean_over_tokens(batch.advantages, batch.mask), batch)


def gspo_token(batch: PolicyLossInput) -> PolicyLoss:
    """The gradient of a token is that of its own log-prob alone, weighted by the completion's ratio."""
    log_ratio = mean_over_tokens(batch.logprobs - batch.old_logprobs, batch.mask).detach()
    return _clipped((log_ratio + batch.logprobs - batch.logprobs.detach()).exp(), batch.advantages, batch)


def _clipped(ratio: torch.Tensor, advantages: torch.Tensor, batch: PolicyLossInput) -> PolicyLoss:
    plain = ratio * advantages
    bounded = ratio.clamp(1 - batch.eps_clip_low, 1 + batch.eps_clip_high) * advantages
    return PolicyLoss(per_token=-torch.minimum(plain, bounded), clipped=bounded < plain)
