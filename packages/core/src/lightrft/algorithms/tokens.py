"""Converts numbers of whole completions to numbers of their tokens, and back. Under a mask [N, T], which may have holes."""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import AdvantageInput


def on_each_token(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N] to float32 [N, T]: a completion's number on each of its tokens, 0 elsewhere."""
    return (values[:, None] * mask).float()


def mean_over_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, T] to [N, 1]: the mean over a completion's own tokens; 0 for one without any."""
    return (values * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


def rewards_by_token(batch: AdvantageInput) -> torch.Tensor:
    """float64 [N, T]: `token_rewards`, or `rewards` on each completion's last token."""
    if batch.token_rewards is not None:
        return batch.token_rewards.double() * batch.mask
    is_last = (batch.mask.flip(-1).cumsum(-1).flip(-1) == 1) & (batch.mask > 0)
    return batch.rewards.double()[:, None] * is_last


def discounted_returns(rewards: torch.Tensor, mask: torch.Tensor, *, gamma: float) -> torch.Tensor:
    """[N, T]: from each token on the sum of gamma^k times the reward k tokens later; masked tokens take no time, and have 0."""
    running = rewards.new_zeros(len(rewards))
    out = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t] > 0
        running = torch.where(here, rewards[:, t] + gamma * running, running)
        out[:, t] = torch.where(here, running, 0.0)
    return out
