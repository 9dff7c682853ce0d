"""Which advantage and which loss does a third party use? The centred reward, and REINFORCE."""

from __future__ import annotations

import torch

from lightrft.algorithms.inputs import AdvantageInput, Advantages, PolicyLoss, PolicyLossInput


def centred(batch: AdvantageInput) -> Advantages:
    return Advantages(advantages=(batch.rewards - batch.rewards.mean())[:, None].float() * batch.mask)


def reinforce(batch: PolicyLossInput) -> PolicyLoss:
    return PolicyLoss(per_token=-batch.logprobs * batch.advantages, clipped=torch.zeros_like(batch.mask, dtype=torch.bool))
