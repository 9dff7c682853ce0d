"""The loss of a step from losses of tokens. Weights of tokens from *global* counts: the sum over all ranks is the loss.

token_mean: the mean over all tokens of the step (Yu et al. 2025, "DAPO", equation 8). sequence_mean: the mean over completions of each
one's mean (Shao et al. 2024, "DeepSeekMath", equation 3). constant: the sum over tokens divided by completions times a constant, so that
a token weighs the same whatever its completion's length (Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2).
"""

from __future__ import annotations

from typing import Literal

import torch

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def token_weights(mask: torch.Tensor, *, how: Aggregation, num_tokens: float, num_sequences: float, constant: float) -> torch.Tensor:
    """float32 [N, T], 0 under the mask's zeros. `num_tokens` and `num_sequences` (those with at least one token) count the whole step, over
    all its micro-batches and ranks; `constant` is the length that "constant" divides by.
    """
    if how == "token_mean":
        return mask / max(num_tokens, 1.0)
    if how == "sequence_mean":
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1) * max(num_sequences, 1.0))
    return mask / (constant * max(num_sequences, 1.0))
