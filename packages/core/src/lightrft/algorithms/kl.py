"""The distance of the policy from the initial model. Per-token estimators of KL(pi, pi_initial) from tokens drawn from pi.

Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html). As a *loss*, the mean gradient of k1 is zero, that of k2 is
the gradient of KL(pi, pi_initial), that of k3 is the gradient of the other direction, KL(pi_initial, pi) (Tang & Munos 2025, "On a few
pitfalls in KL divergence gradient estimation for RL"). As a *reward*, k1 is the unbiased choice.
"""

from __future__ import annotations

from typing import Literal

import torch

KLEstimator = Literal["k1", "k2", "k3"]


def kl_per_token(logprobs: torch.Tensor, initial_logprobs: torch.Tensor, *, estimator: KLEstimator) -> torch.Tensor:
    """Same shape as the inputs, nats. With d = log pi_initial - log pi: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d."""
    difference = initial_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference**2 / 2
    return torch.expm1(difference) - difference
