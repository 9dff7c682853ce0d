"""ReMax's advantage: the reward minus that of the greedy completion of the same prompt.

A_i = r(x, y_i) - r(x, greedy(x)), Li et al. 2023, "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning
Large Language Models" (arXiv:2310.10505), equation 4. One more completion per prompt is generated for it.
"""

from __future__ import annotations

from lightrft.algorithms.inputs import AdvantageInput, Advantages
from lightrft.algorithms.tokens import on_each_token


def remax(batch: AdvantageInput) -> Advantages:
    """Groups play no part: one sample per prompt is enough. Needs `baselines`.

    Raises:
        ValueError: `baselines` is None.
    """
    if batch.baselines is None:
        raise ValueError("remax needs baselines [N], the rewards of the greedy completions; found None")
    return Advantages(advantages=on_each_token(batch.rewards.double() - batch.baselines.double(), batch.mask))
