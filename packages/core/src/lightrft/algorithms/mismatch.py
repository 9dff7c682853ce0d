"""Measures of how far the sampling engine is from the trainer, and the correction. Pure functions of log-probs.

d = log pi_trainer - log pi_engine of each sampled token, both under the untempered distribution, natural logs; w = exp(d). At temperature
1 without filters w is the exact ratio of the distributions that learns and that sampled. Otherwise the tokens came from a tempered or
filtered one, whose ratio cannot be had from what engines return; w is then an estimate of how the two programs differ.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

MismatchLevel = Literal["token", "sequence"]
Beyond = Literal["truncate", "mask"]
SUMS = ("tokens", "abs", "k3", "weight", "weight_squared", "clipped")
"""What `mismatch_sums` gives, in order; sums over tokens, so that ranks can be added up."""


def mismatch_sums(difference: torch.Tensor, *, cap: float, log_weight: torch.Tensor | None = None) -> torch.Tensor:
    """float64 [6] for differences d [tokens]: counts and sums from which `mismatch_metrics` makes global values.

    k3 is the low-variance estimate of KL(engine || trainer) on samples of the engine: w - 1 - log w (Schulman 2020, "Approximating KL
    Divergence"). `clipped` counts the tokens whose weight is above `cap`: w, or where given exp(`log_weight`) [tokens].
    """
    d = difference.double()
    w = d.exp()
    clipped = (d if log_weight is None else log_weight) > math.log(cap)
    return torch.stack(
        [torch.tensor(float(d.numel()), dtype=torch.float64), d.abs().sum(), (w - 1 - d).sum(), w.sum(), (w * w).sum(), clipped.sum()]
    )


def mismatch_metrics(sums: torch.Tensor) -> dict[str, float]:
    """Means over tokens, and Kish's effective sample size (sum w)^2 / (N sum w^2), 1 where all weights are equal."""
    tokens, absolute, k3, weight, squared, clipped = sums.tolist()
    return {
        "rollout/logprob_gap": absolute / tokens,
        "rollout/mismatch_kl": k3 / tokens,
        "rollout/mismatch_ess": weight * weight / (tokens * squared),
        "rollout/mismatch_clipped": clipped / tokens,
    }


def log_weights(difference: torch.Tensor, *, level: MismatchLevel) -> torch.Tensor:
    """Logs of the untruncated weights [T] of one completion: d of each token, or the sum of d for all its tokens."""
    return difference if level == "token" else difference.sum().expand_as(difference)


def correction_weights(
    difference: torch.Tensor, *, level: MismatchLevel, cap: float, beyond: Beyond = "truncate", floor: float = 0.0
) -> torch.Tensor:
    """Importance weights [T] of one completion with differences d [T]: of each token, or of the whole sequence's product for all of them.

    "truncate": min(w, cap) (Ionides 2008, "Truncated Importance Sampling"; for this mismatch Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training"). "mask": w where floor <= w <= cap, else 0 (Liu et al. 2025, "When Speed Kills Stability";
    with a floor the IcePop of Ling-1T, Zhao et al. 2025): what the trainer holds for near impossible, or far likelier, teaches nothing.

    The engine samples at the rollout's temperature and gives untempered log-probs: d is then the numerical disagreement of the two
    programs on the same distribution, which is what is corrected.
    """
    weights = log_weights(difference, level=level).double().exp()
    if beyond == "mask":
        return torch.where((weights <= cap) & (weights >= floor), weights, 0.0).float()
    return weights.clamp(max=cap).float()
