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
    logits = _target_logits(model, batch, temperature)
    return _at_targets(logits, batch) * batch.mask


def token_logprobs_and_entropy(model: Any, batch: TokenBatch, *, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logprobs`, and the entropy of the same distribution over the whole vocabulary, nats; both [N, T] float32 with gradients."""
    logits = _target_logits(model, batch, temperature)
    normalized = logits.log_softmax(-1)
    # Logits of minus infinity (a vocabulary with forbidden tokens) have probability 0 and add nothing.
    entropy = -(normalized.exp() * normalized.masked_fill(normalized == -torch.inf, 0.0)).sum(-1)
    return _at_targets(logits, batch) * batch.mask, entropy * batch.mask


def token_values(critic: Any, batch: TokenBatch) -> torch.Tensor:
    """The critic's value [N, T] float32 of the text before each target, 0 under the mask's zeros."""
    values: torch.Tensor = critic(input_ids=batch.ids, use_cache=False).logits[..., 0]
    return values.gather(1, batch.positions).float() * batch.mask


def _target_logits(model: Any, batch: TokenBatch, temperature: float) -> torch.Tensor:
    """float32 [N, T, V]: those that predict the targets, over the temperature."""
    logits = model(input_ids=batch.ids, use_cache=False).logits
    index = batch.positions[..., None].expand(-1, -1, logits.shape[-1])
    chosen: torch.Tensor = logits.gather(1, index).float() / temperature
    return chosen


def _at_targets(logits: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    found: torch.Tensor = logits.gather(-1, batch.targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return found
