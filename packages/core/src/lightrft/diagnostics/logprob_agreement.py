"""How far are an engine's log-probs from the trainer's, and how far may they be?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.experience.microbatch import even_micro_batches
from lightrft.experience.trajectory import Trajectory, as_token_batch
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.types import RequestOutput, Sample, SamplingParams


@dataclass(frozen=True)
class Bound:
    """|engine - trainer| in nats per token: of the mean, and of the largest."""

    mean: float
    largest: float


FP32_CPU = Bound(1e-4, 1e-3)
"""The same sums in another order: measured are 1e-6 to 1e-5."""
FP32_CUDA = Bound(0.0125, 0.125)
"""Kernels that take float32 into tensor cores (Triton's attention in vLLM) multiply with TF32's 10 bits of mantissa, two more than those of
bfloat16: a quarter of its bound. Measured on an H100 (vLLM against transformers): mean 0.0004 to 0.003, largest 0.001 to 0.017.
"""
HALF = Bound(0.05, 0.5)
"""bfloat16, measured there: mean 0.003 to 0.017, largest 0.015 to 0.09. A sync that went wrong is mostly off by whole nats."""


def bound_for(dtype: torch.dtype, *, device_type: str) -> Bound:
    """What rounding explains when the engine computes in `dtype`."""
    if dtype != torch.float32:
        return HALF
    return FP32_CUDA if device_type == "cuda" else FP32_CPU


@dataclass(frozen=True)
class Gap:
    """Over the tokens of all ranks. Without tokens both are 0."""

    mean: float
    largest: float

    def within(self, bound: Bound) -> bool:
        """Whether rounding explains it; not a number is never explained."""
        return self.mean <= bound.mean and self.largest <= bound.largest


Scorer = Callable[[list[Trajectory]], list[torch.Tensor]]
Change = Callable[[torch.Tensor], torch.Tensor]


def ask(strategy: StrategyBase, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[RequestOutput]:
    """Completions with log-probs; the engine stays awake. Collective."""
    return strategy.gather_and_generate(sampling, all_prompt_token_ids=prompts, sleep_engine=False, logprobs=True)


def trajectories_of(outputs: Sequence[RequestOutput]) -> list[Trajectory]:
    """What is scored, without texts or rewards."""
    nothing = Sample(prompt="", completion="")
    return [
        Trajectory(prompt_ids=list(output.prompt_token_ids), completion=completion, sample=nothing, group_id=output.id)
        for output in outputs
        for completion in output.completions
    ]


def gap_between(
    trajectories: Sequence[Trajectory], trainer: Sequence[torch.Tensor], *, strategy: StrategyBase, first: int = 0, last: int | None = None
) -> Gap:
    """The gap over tokens `first` to `last` - 1 of each completion. Collective."""
    parts = [(torch.tensor(t.completion.logprobs) - mine).abs()[first:last] for t, mine in zip(trajectories, trainer, strict=True)]
    mine = torch.cat(parts).double() if parts else torch.zeros(0, dtype=torch.float64)
    totals = strategy.all_reduce({"count": float(mine.numel()), "sum": float(mine.sum()), "lost": float(mine.isnan().sum())}, "sum")
    largest = strategy.all_reduce(float(mine.nan_to_num().max()) if mine.numel() else 0.0, "max")
    return Gap(totals["sum"] / max(totals["count"], 1.0), float("nan") if totals["lost"] else largest)


@torch.no_grad()
def score_changed(
    model: Any, trajectories: list[Trajectory], *, strategy: StrategyBase, micro_batch_size: int, change: Change, positions: bool = False
) -> list[torch.Tensor]:
    """As `score_logprobs`, of the distribution of `change(logits)`; with `positions` the model is told mask and positions. Collective."""
    found: dict[int, torch.Tensor] = {}
    for micro_batch in even_micro_batches(trajectories, size=micro_batch_size, strategy=strategy):
        batch = as_token_batch(micro_batch, device=strategy.world.device)
        told: dict[str, Any] = {}
        if positions:
            lengths = torch.tensor([t.length for t in micro_batch] or [batch.ids.shape[1]], device=batch.ids.device)
            counted = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
            told = {"position_ids": counted, "attention_mask": (counted < lengths[:, None]).long()}
        logits = model(input_ids=batch.ids, use_cache=False, **told).logits
        chosen = logits.gather(1, batch.positions[..., None].expand(-1, -1, logits.shape[-1])).float()
        rows = change(chosen.flatten(0, 1)).log_softmax(-1).view_as(chosen).gather(-1, batch.targets[..., None]).squeeze(-1).cpu()
        found |= {id(t): row[: t.num_tokens] for t, row in zip(micro_batch, rows, strict=False)}
    return [found[id(t)] for t in trajectories]
