"""How far is the engine that sampled from the trainer that learns, and how is it corrected? Pure functions of log-probs.

d = log pi_trainer - log pi_engine of each sampled token, both under the untempered distribution, natural logs; w = exp(d).
"""

from __future__ import annotations

from typing import Literal

import torch

SUMS = ("tokens", "abs", "k3", "weight", "weight_squared", "clipped")
"""What `mismatch_sums` gives, in order; sums over tokens, so that ranks can be added up."""


def mismatch_sums(difference: torch.Tensor, *, cap: float) -> torch.Tensor:
    """float64 [6] for differences d [tokens]: counts and sums from which `mismatch_metrics` makes global values.

    k3 is the low-variance estimate of KL(engine || trainer) on samples of the engine: w - 1 - log w (Schulman 2020, "Approximating KL
    Divergence"). `clipped` counts the tokens whose w is above `cap`.
    """
    d = difference.double()
    w = d.exp()
    return torch.stack(
        [torch.tensor(float(d.numel()), dtype=torch.float64), d.abs().sum(), (w - 1 - d).sum(), w.sum(), (w * w).sum(), (w > cap).sum()]
    )


def mismatch_metrics(sums: torch.Tensor) -> dict[str, float]:
    """Means over tokens, and Kish's effective sample size (sum w)^2 / (N sum w^2), 1 where all weights are alike."""
    tokens, absolute, k3, weight, squared, clipped = sums.tolist()
    return {
        "rollout/logprob_gap": absolute / tokens,
        "rollout/mismatch_kl": k3 / tokens,
        "rollout/mismatch_ess": weight * weight / (tokens * squared),
        "rollout/mismatch_clipped": clipped / tokens,
    }


def correction_weights(difference: torch.Tensor, *, level: Literal["token", "sequence"], cap: float) -> torch.Tensor:
    """Truncated importance weights [T] of one completion with differences d [T]: min(w, cap) of each token, or of the whole sequence's
    product for all its tokens (Ionides 2008, "Truncated Importance Sampling"; for this mismatch Yao et al. 2025, "Your Efficient RL
    Framework Secretly Brings You Off-Policy RL Training").

    The engine samples at the rollout's temperature and gives untempered log-probs: d is then the numerical disagreement of the two
    programs on the same distribution, which is what is corrected.
    """
    log_weight = difference if level == "token" else difference.sum().expand_as(difference)
    return log_weight.double().exp().clamp(max=cap).float()
