"""What advantage estimators and policy losses take and return. The shapes that plugins are written against.

N completions, T completion tokens (right-padded); `mask` [N, T] float32 is 1 on tokens that count and 0 on padding. What has a default
may be left out by who builds an input, and not looked at by who reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class AdvantageInput:
    """Completions of whole groups, with their rewards. Nothing carries a gradient.

    `rewards` [N] float: all that a completion earned, a KL penalty included. `group_ids` [N] int64, equal for the completions of one
    prompt, which are all here; groups may have any size, in any order. `mask` [N, T].

    `token_rewards` [N, T] float: the same rewards token by token, so that each row sums up to `rewards`; None: all of it on the last token.
    `values` [N, T] float32: the critic's value before each token, where the estimator's spec says `critic`. `baselines` [N] float: the
    reward of the greedy completion of the same prompt, where it says `greedy`. `gamma`, `lambd`: discount and lambda of GAE, in [0, 1].
    `settings`: those that the estimator's spec brings, else None.
    """

    rewards: torch.Tensor
    group_ids: torch.Tensor
    mask: torch.Tensor
    token_rewards: torch.Tensor | None = None
    values: torch.Tensor | None = None
    baselines: torch.Tensor | None = None
    gamma: float = 1.0
    lambd: float = 1.0
    settings: Any = None


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """`advantages` [N, T] float32, 0 where the mask is 0.

    `returns` [N, T] float32: what the critic is to learn, where there is one. `whiten`: the caller should bring the advantages of all
    tokens of the rollout, on all ranks, to mean 0 and standard deviation 1 (an estimator sees one rank's only).
    """

    advantages: torch.Tensor
    returns: torch.Tensor | None = None
    whiten: bool = False


@dataclass(frozen=True, kw_only=True)
class PolicyLossInput:
    """`logprobs` [N, T] carries the gradient; `old_logprobs`, `advantages`, `mask` [N, T] do not. Rows are whole completions.

    The probability ratio may move in [1 - `eps_clip_low`, 1 + `eps_clip_high`]; `dual_clip` (above 1; 0: off) bounds a loss of a negative
    advantage. `settings`: those that the loss's spec brings, else None.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    eps_clip_low: float = 0.2
    eps_clip_high: float = 0.2
    dual_clip: float = 0.0
    settings: Any = None


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """`per_token` [N, T]: each token's loss, neither masked nor averaged (the trainer does, with global counts). A loss of a whole
    completion is given to each of its tokens: their mean is that loss. `clipped` [N, T] bool: tokens whose gradient a clip removed or
    bounded.
    """

    per_token: torch.Tensor
    clipped: torch.Tensor
