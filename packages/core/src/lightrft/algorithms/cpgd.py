"""CPGD's policy loss: a policy gradient on the *log* of the ratio, clipped, and a penalty for drifting from the old policy.

-min(d A, clip(d, log(1 - eps_low), log(1 + eps_high)) A) + alpha KL(pi_old, pi), d = log pi - log pi_old: Liu et al. 2025, "CPGD: Toward
Stable Rule-based Reinforcement Learning for Language Models" (arXiv:2505.12504), equation 2 (token by token, section 3.3). The drift is the
k3 estimate on samples of pi_old, exp(d) - 1 - d, whose gradient (exp(d) - 1) grad log pi is bounded from above by `DRIFT_BOUND`.
At d = 0, in a first update, the *value* of the loss is 0; its gradient is -A grad log pi, that of REINFORCE.
"""

from __future__ import annotations

import math

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput

DRIFT_BOUND = 1.0
"""Beyond log(1 + this) the drift goes on as a straight line, so that a token far off cannot take over the step."""


def cpgd(batch: PolicyLossInput) -> PolicyLoss:
    """`clipped` marks the tokens whose policy gradient the clip removed; their drift keeps its own. `settings.drift_coef` weighs it."""
    log_ratio = batch.logprobs - batch.old_logprobs
    low = math.log1p(-batch.eps_clip_low) if batch.eps_clip_low < 1 else -math.inf
    plain = log_ratio * batch.advantages
    bounded = log_ratio.clamp(low, math.log1p(batch.eps_clip_high)) * batch.advantages
    return PolicyLoss(
        per_token=batch.settings.drift_coef * drift(log_ratio) - torch.minimum(plain, bounded),
        clipped=bounded < plain,
    )


def drift(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(d) - 1 - d up to d = log(1 + DRIFT_BOUND), then on in a straight line; of the shape of `log_ratio`."""
    near = log_ratio.clamp(max=math.log1p(DRIFT_BOUND))
    return torch.expm1(near) - near + DRIFT_BOUND * (log_ratio - near)
