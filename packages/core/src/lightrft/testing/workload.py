"""What backends train on when they are compared. Ragged rows, a token-weighted loss, batches split unevenly over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightrft.strategy.strategy_base import AdamWSettings, StepResult, StrategyBase

SETTINGS = AdamWSettings(learning_rate=1e-3, weight_decay=0.01)


@dataclass(frozen=True)
class Row:
    """Token ids [L] (L differs from row to row), of which the last `num_counted` are in the loss."""

    token_ids: torch.Tensor
    num_counted: int


def ragged_rows(step: int, *, num_rows: int = 12, vocab_size: int = 64) -> list[Row]:
    """Rows of 6 to 39 tokens, 1 to L - 3 of them in the loss; another batch for each step."""
    generator = torch.Generator().manual_seed(100 + step)
    rows = []
    for _ in range(num_rows):
        length = int(torch.randint(6, 40, (1,), generator=generator))
        counted = int(torch.randint(1, length - 2, (1,), generator=generator))
        rows.append(Row(torch.randint(0, vocab_size, (length,), generator=generator), counted))
    return rows


def split_rows(rows: Sequence[Row], *, world_size: int, num_micro: int) -> list[list[list[Row]]]:
    """For each rank its `num_micro` micro-batches: uneven over ranks and micro-batches, some of them empty."""
    per_rank: list[list[Row]] = [[] for _ in range(world_size)]
    for i, row in enumerate(rows):
        per_rank[(i * i + i // 5) % world_size].append(row)
    return [[mine[j::num_micro] for j in range(num_micro)] for mine in per_rank]


def count(rows: Sequence[Row]) -> int:
    """The tokens in the loss."""
    return sum(row.num_counted for row in rows)


def loss_sum(model: torch.nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    """Sum over counted tokens of the negative log-probability; without rows a forward pass worth exactly 0: all ranks must take part."""
    if not rows:
        logits: torch.Tensor = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=_device(model))).logits
        return logits.float().sum() * 0.0
    width = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    counted = torch.zeros(len(rows), width - 1)
    for i, row in enumerate(rows):
        length = len(row.token_ids)
        ids[i, :length] = row.token_ids
        attention[i, :length] = 1
        counted[i, length - 1 - row.num_counted : length - 1] = 1
    ids, attention, counted = (t.to(_device(model)) for t in (ids, attention, counted))
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1].float()
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -(log_probs * counted).sum()


def accumulate(
    strategy: StrategyBase,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    *,
    num_micro: int | None = None,
    always_final: bool = False,
    num_ranks_with_rows: int | None = None,
) -> None:
    """The backward passes of one step over `ragged_rows(step)`; ranks beyond `num_ranks_with_rows` bring none.

    Ranks bring different numbers of micro-batches, but with `always_final`, where each of them ends in a reduction.
    """
    rows = ragged_rows(step)
    num_micro = num_micro or (1, 3, 2, 4, 1)[step % 5]
    parts = split_rows(rows, world_size=num_ranks_with_rows or strategy.world.world_size, num_micro=num_micro)
    mine = parts[strategy.world.rank] if strategy.world.rank < len(parts) else [[] for _ in range(num_micro)]
    if not always_final:
        strategy.accumulate([micro for micro in mine if micro], lambda micro: loss_sum(model, micro) / count(rows), model, optimizer)
        return
    for micro in mine:
        strategy.backward(loss_sum(model, micro) / count(rows), model, optimizer, final=True)


def train(
    strategy: StrategyBase,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    first: int = 0,
    last: int = 5,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    max_norm: float = 0.0,
) -> list[StepResult]:
    """Steps `first` to `last` - 1."""
    results = []
    for step in range(first, last):
        accumulate(strategy, model, optimizer, step)
        results.append(strategy.optimizer_step(optimizer, model, scheduler, "actor", max_norm=max_norm))
    return results


def full_parameters(strategy: StrategyBase, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, full, on the CPU, under its first name. Collective."""
    buckets = strategy.export_weights(model)
    return {weight.names[0]: weight.tensor.detach().cpu().clone() for bucket in buckets for weight in bucket}


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, relative: bool = False) -> float:
    """Maximum over tensors of max|found - expected|, relative: divided by max|expected|. NaN anywhere is NaN: Python's max would lose it.

    Raises:
        ValueError: other names, or nothing to compare.
    """
    if found.keys() != expected.keys() or not expected:
        raise ValueError(f"names differ: {sorted(found.keys() ^ expected.keys())}")
    worst = []
    for name, tensor in expected.items():
        scale = float(tensor.detach().abs().max()) if relative else 1.0
        worst.append(float((found[name] - tensor).detach().abs().max()) / scale)
    return float(torch.tensor(worst, dtype=torch.float64).max())


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
