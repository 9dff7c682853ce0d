"""The greedy completion of each prompt and what it earns: the baseline of estimators whose spec says `greedy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightrft.batch.stages import Sampled
from lightrft.config.schema import Config
from lightrft.experience.images import ReadPrompts
from lightrft.experience.samples import samples_of
from lightrft.experience.sampling import greedy_params
from lightrft.rewards.score import Scores
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import Sample


def greedy_answers(read: ReadPrompts, *, strategy: StrategyBase, config: Config, tokenizer: Any) -> list[Sample]:
    """One for each prompt, in order. The engine stays awake for the samples that are drawn next. Collective."""
    outputs = strategy.gather_and_generate(
        sampling_params=greedy_params(config),
        **read.asked,
        sleep_engine=False,
    )
    return samples_of(read.prompts, outputs, tokenizer=tokenizer, pictures=read.pictures)


def greedy_rewards(batch: Sampled, *, score: Callable[[Sequence[Sample]], Scores]) -> torch.Tensor:
    """float64 [N]: the reward of each sequence's greedy answer, which is scored once for each group. As collective as `score` is."""
    of_group = {group: sample for group, sample in zip(batch.group_ids.tolist(), batch.greedy, strict=True) if sample is not None}
    rewards = dict(zip(of_group, score(list(of_group.values())).total, strict=True))
    return torch.tensor([rewards[group] for group in batch.group_ids.tolist()], dtype=torch.float64)
