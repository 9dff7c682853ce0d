"""The policy loss `acme`: REINFORCE (Williams 1992): minus the log-probability times the advantage."""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput


def reinforce(batch: PolicyLossInput) -> PolicyLoss:
    """[N, T], neither masked nor averaged: the trainer does that, with the number of tokens of all ranks."""
    return PolicyLoss(per_token=-batch.logprobs * batch.advantages, clipped=torch.zeros_like(batch.mask, dtype=torch.bool))
