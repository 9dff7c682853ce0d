"""How far is the engine that sampled from the trainer that learns, and which weights make up for it? Truncated importance sampling.

mu is the distribution that the engine drew a token from, pi the trainer's for the same weights. With d = log pi - log mu of the drawn
token, its importance weight is w = exp(d): an expectation under pi is one under mu of w times the same thing. Truncating w at a cap trades
a little bias for a bounded variance (Ionides 2008, "Truncated Importance Sampling"); for engines beside trainers see Yao et al. 2025, "Your
Efficient RL Framework Secretly Brings You Off-Policy RL Training".

Both sides have to be the *same* distribution. Engines report log-probs of the untempered, unfiltered one, so both are untempered here, and
what is corrected is the difference of the two implementations (kernels, dtypes, stale weights). At temperature 1 without filters w is
exact. Otherwise the tokens came from another distribution than w speaks of, whose own ratio nobody can compute from what engines return;
w is then an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from lightrft.algorithms.kl import kl_per_token

MismatchLevel = Literal["token", "sequence"]
"""`token`: each token has its own ratio; `sequence`: all tokens of a completion have the product of their ratios."""


def log_weights(trainer: torch.Tensor, engine: torch.Tensor, *, level: MismatchLevel) -> torch.Tensor:
    """Logs of the untruncated weights of one completion, float64 [T], from the log-probs [T] of both sides."""
    difference = trainer.double() - engine.double()
    return difference if level == "token" else difference.sum().expand_as(difference)


def truncated_weights(trainer: torch.Tensor, engine: torch.Tensor, *, level: MismatchLevel, cap: float) -> torch.Tensor:
    """min(w, cap) for each token of one completion, float32 [T], without gradient."""
    return log_weights(trainer.detach(), engine, level=level).clamp(max=math.log(cap)).exp().float()


def mismatch_sums(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], *, level: MismatchLevel, cap: float) -> torch.Tensor:
    """What one rank knows of its (trainer, engine) log-probs, float64 [7]: tokens, sum and largest |d|, sum of k3, logs of the sums of w
    and of w^2 over tokens (-inf without any), tokens whose weight at `level` is beyond the cap."""
    none = torch.zeros(0, dtype=torch.float64)
    d = torch.cat([none, *(log_weights(trainer, engine, level="token") for trainer, engine in pairs)])
    weights = torch.cat([none, *(log_weights(trainer, engine, level=level) for trainer, engine in pairs)])
    distance = d.abs()
    return torch.stack(
        [
            d.new_tensor(float(len(d))),
            distance.sum(),
            distance.max() if len(d) else d.new_zeros(()),
            kl_per_token(torch.zeros_like(d), d, estimator="k3").sum(),
            torch.logsumexp(d, 0),
            torch.logsumexp(2 * d, 0),
            (weights > math.log(cap)).double().sum(),
        ]
    )


def mismatch_metrics(rows: torch.Tensor) -> dict[str, float]:
    """The metrics of all ranks from each one's `mismatch_sums`, [ranks, 7]; empty where no rank has a token.

    `mismatch_kl` is the k3 estimate of KL(mu, pi) from tokens drawn from mu; `mismatch_ess` is the effective sample size of the tokens'
    untruncated weights, (sum w)^2 / (N sum w^2) (Kish 1965), 1 where engine and trainer agree; `mismatch_clipped` is a share of tokens.
    """
    tokens, distance, _, kl, _, _, clipped = rows.sum(0).tolist()
    if not tokens:
        return {}
    log_ess = 2 * torch.logsumexp(rows[:, 4], 0) - torch.logsumexp(rows[:, 5], 0) - math.log(tokens)
    return {
        "rollout/logprob_gap": distance / tokens,
        "rollout/logprob_gap_max": float(rows[:, 2].max()),
        "rollout/mismatch_kl": kl / tokens,
        "rollout/mismatch_ess": float(log_ess.exp()),
        "rollout/mismatch_clipped": clipped / tokens,
    }
