"""What log-probability does a model give to each token of a batch of completions?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """N rows of prompt plus completion, right-padded.

    `ids` [N, L] int64; `targets` [N, T] int64 completion tokens; `positions` [N, T] int64: where in a row's logits target t is predicted;
    `mask` [N, T] float32. A batch of no rows is one row of padding under a zero mask, so that every rank can take part in a forward pass.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


def token_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, device: torch.device) -> TokenBatch:
    """Pads (prompt ids, completion ids) pairs; pads are token 0, which no real token can see (the models are causal)."""
    shown = list(rows) or [([0], [0])]
    widest = max(len(completion) for _, completion in shown)
    ids = torch.zeros(len(shown), max(len(prompt) + len(completion) for prompt, completion in shown), dtype=torch.long)
    targets = torch.zeros(len(shown), widest, dtype=torch.long)
    positions = torch.zeros(len(shown), widest, dtype=torch.long)
    mask = torch.zeros(len(shown), widest)
    for row, (prompt, completion) in enumerate(shown):
        start, length = len(prompt), len(completion)
        ids[row, : start + length] = torch.tensor([*prompt, *completion])
        targets[row, :length] = torch.tensor(completion)
        positions[row, :length] = torch.arange(start - 1, start - 1 + length)
        mask[row, :length] = 1.0 if rows else 0.0
    return TokenBatch(ids=ids.to(device), targets=targets.to(device), positions=positions.to(device), mask=mask.to(device))


def token_logprobs(model: Any, batch: TokenBatch, *, temperature: float = 1.0) -> torch.Tensor:
    """Natural logs [N, T] float32 of softmax(logits / temperature) at the targets, 0 under the mask's zeros."""
    logits = model(input_ids=batch.ids, use_cache=False).logits
    index = batch.positions[..., None].expand(-1, -1, logits.shape[-1])
    chosen = logits.gather(1, index).float() / temperature
    logprobs: torch.Tensor = chosen.gather(-1, batch.targets[..., None]).squeeze(-1) - chosen.logsumexp(-1)
    return logprobs * batch.mask
