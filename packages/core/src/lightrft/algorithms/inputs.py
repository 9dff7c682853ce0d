"""What do advantage estimators and policy losses take and give? The shapes that plugins are written against.

N completions, T completion tokens (right-padded); `mask` [N, T] float32 is 1 on real completion tokens and 0 on padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class AdvantageInput:
    """`rewards` [N] float; `group_ids` [N] int64, equal for the completions of one prompt, which are all here; `mask` [N, T]."""

    rewards: torch.Tensor
    group_ids: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """`advantages` [N, T] float32, 0 where the mask is 0."""

    advantages: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class PolicyLossInput:
    """`logprobs` [N, T] carries the gradient; `old_logprobs`, `advantages`, `mask` [N, T] do not. `eps_clip` > 0."""

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    eps_clip: float


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """`per_token` [N, T]: each token's loss, neither masked nor averaged (the trainer does, with global counts); `clipped` [N, T] bool."""

    per_token: torch.Tensor
    clipped: torch.Tensor
