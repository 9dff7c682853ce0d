"""How far an engine's log-probs are from the trainer's, and how far they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.micro_batch import MicroBatch
from lightrft.batch.planning import Batching
from lightrft.batch.stages import Sampled
from lightrft.engine.rounding import Bound
from lightrft.experience.scoring import score_columns
from lightrft.models.score import label_logits
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import RequestOutput, SamplingParams


@dataclass(frozen=True)
class Gap:
    """Over the tokens of all ranks. Without tokens both are 0."""

    mean: float
    largest: float
    trainer_lost: bool = False
    """Whether any of the trainer's own is NaN, on any rank."""

    def within(self, bound: Bound) -> bool:
        """Whether rounding explains it; not a number is never explained."""
        return self.mean <= bound.mean and self.largest <= bound.largest


Change = Callable[[torch.Tensor], torch.Tensor]


def ask(strategy: StrategyBase, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[RequestOutput]:
    """Completions with log-probs; the engine stays awake. Collective."""
    return strategy.gather_and_generate(sampling, all_prompt_token_ids=prompts, sleep_engine=False, logprobs=True)


def gap_between(batch: Sampled, trainer: torch.Tensor, *, strategy: StrategyBase, first: int = 0, last: int | None = None) -> Gap:
    """The gap to `trainer` float32 [S] over tokens `first` to `last` - 1 of each completion. Collective."""
    parts = [difference.abs()[first:last] for difference in batch.by_sequence(batch.engine_logprobs - trainer)]
    mine = torch.cat(parts).double() if parts else torch.zeros(0, dtype=torch.float64)
    own = torch.cat([values[first:last] for values in batch.by_sequence(trainer)]) if parts else torch.zeros(0)
    counted = {"count": float(mine.numel()), "sum": float(mine.sum()), "lost": float(mine.isnan().sum())}
    totals = strategy.all_reduce(counted | {"trainer": float(own.isnan().sum())}, "sum")
    largest = strategy.all_reduce(float(mine.nan_to_num().max()) if mine.numel() else 0.0, "max")
    return Gap(totals["sum"] / max(totals["count"], 1.0), float("nan") if totals["lost"] else largest, trainer_lost=totals["trainer"] > 0)


def score_changed(
    model: Any, batch: Sampled, *, strategy: StrategyBase, batching: Batching, change: Change, positions: bool = False
) -> torch.Tensor:
    """As `score_logprobs`, of the distribution of `change(logits)`; with `positions` the model is told mask and positions. Collective."""

    def forward(micro: MicroBatch) -> list[torch.Tensor]:
        ids = micro.inputs["input_ids"]
        told: dict[str, Any] = {}
        if positions:
            counted = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            told = {"position_ids": counted, "attention_mask": (counted <= last_place(micro)[:, None]).long()}
        logits = change(label_logits(model, micro, **told))
        return [logits.log_softmax(-1).gather(-1, micro.labels[:, None]).squeeze(-1)]

    parts = batching.micro_batches(batch, torch.arange(len(batch)))
    [found] = score_columns(forward, batch, parts, number=1, strategy=strategy, batching=batching)
    return found


def last_place(micro: MicroBatch) -> torch.Tensor:
    """int64 [R]: where the last label of each row stands; a row without labels is real to its end."""
    rows, width = micro.inputs["input_ids"].shape
    out = torch.full((rows,), -1, device=micro.at.device).scatter_reduce(0, micro.at // width, micro.at % width + 1, reduce="amax")
    return torch.where(out < 0, width, out)
