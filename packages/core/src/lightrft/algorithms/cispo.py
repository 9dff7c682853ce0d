"""CISPO's policy loss: REINFORCE with a clipped importance weight: no token ever loses its gradient.

-sg[clip(rho, 1 - eps_low, 1 + eps_high)] A log pi, sg: no gradient; MiniMax 2025, "MiniMax-M1" (arXiv:2506.13585), equations 4 and 5.
The paper has no lower bound, which is `eps_clip_low` 1, and tunes the upper one. Tokens are averaged by `loss_aggregation` token_mean.
"""

from __future__ import annotations

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput


def cispo(batch: PolicyLossInput) -> PolicyLoss:
    """`clipped` marks the tokens whose weight was bounded."""
    ratio = (batch.logprobs.detach() - batch.old_logprobs).exp()
    weight = ratio.clamp(1 - batch.eps_clip_low, 1 + batch.eps_clip_high)
    return PolicyLoss(per_token=-weight * batch.advantages * batch.logprobs, clipped=weight != ratio)
