"""The advantage `acme`: the reward less the mean of all rewards."""

from __future__ import annotations

from lightrft.algorithms.inputs import AdvantageInput, Advantages


def centred(batch: AdvantageInput) -> Advantages:
    """`batch.rewards` [N] less their mean, at each of a completion's tokens: [N, T], 0 where the mask is 0."""
    centred_rewards = batch.rewards.float() - batch.rewards.float().mean()
    return Advantages(advantages=centred_rewards[:, None] * batch.mask)
