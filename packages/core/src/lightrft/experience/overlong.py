"""Completions that are too long: a soft punishment near the limit, and truncated ones left out of the loss."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightrft.batch.stages import Rewarded
from lightrft.config.schema import Config


def soft_punishment(num_tokens: int, *, longest: int, buffer: int) -> float:
    """From 0 down to -1 over the last `buffer` tokens before `longest` (Yu et al. 2025, "DAPO", equation 13)."""
    free = longest - buffer
    if num_tokens <= free:
        return 0.0
    return (free - num_tokens) / buffer if num_tokens <= longest else -1.0


def treat_overlong(batch: Rewarded, *, config: Config) -> tuple[Rewarded, torch.Tensor]:
    """The batch with the punishments in its rewards, and its truncated sequences left out of the loss; the punishments, float64 [N]. Local.

    The reward of a greedy baseline is punished in the same way. What is left out still counts in its group's mean, as in the paper.
    """
    punishments = _punishments(batch.num_sampled.tolist(), config)
    greedy = _punishments([0 if sample is None else sample.num_tokens for sample in batch.greedy], config)
    treated = replace(
        batch,
        rewards=batch.rewards + punishments,
        baselines=batch.baselines + greedy,
        trains=batch.trains & ~batch.truncated if config.overlong_filter else batch.trains,
    )
    return treated, punishments


def _punishments(lengths: list[int], config: Config) -> torch.Tensor:
    if not config.overlong_buffer:
        return torch.zeros(len(lengths), dtype=torch.float64)
    found = [soft_punishment(n, longest=config.generate_max_len, buffer=config.overlong_buffer) for n in lengths]
    return config.overlong_penalty * torch.tensor(found, dtype=torch.float64)
