"""GMPO's policy loss: the geometric mean of a completion's clipped token terms, instead of GRPO's arithmetic one.

-sgn(A) (prod_t |min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A)|)^(1 / |y|) = -A exp(mean_t d'_t), d' the log-ratios of which those
beyond the bound on the side of A's sign are clipped: Zhao et al. 2025, "Geometric-Mean Policy Optimization" (arXiv:2507.20673),
equation 4. The paper's bounds are e^-0.4 and e^0.4 (`eps_clip_low` 0.33, `eps_clip_high` 0.49) and its mean goes over completions
(`loss_aggregation` sequence_mean).
"""

from __future__ import annotations

import math

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.tokens import mean_over_tokens


def gmpo(batch: PolicyLossInput) -> PolicyLoss:
    """The advantage of a completion is the mean of its tokens'. `clipped` marks the tokens whose ratio was bounded."""
    advantage = mean_over_tokens(batch.advantages, batch.mask)
    log_ratio = batch.logprobs - batch.old_logprobs
    low = math.log1p(-batch.eps_clip_low) if batch.eps_clip_low < 1 else -math.inf
    bounded = torch.where(advantage > 0, log_ratio.clamp(max=math.log1p(batch.eps_clip_high)), log_ratio.clamp(min=low))
    ratio = mean_over_tokens(bounded, batch.mask).exp()
    return PolicyLoss(per_token=(-advantage * ratio).expand_as(batch.mask), clipped=bounded != log_ratio)
