"""What models say of tokens: the only place where a model is called on a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.micro_batch import MicroBatch


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Of M labels, float32 [M]: `logprobs`, natural logs, one for each temperature that was asked for, in their order; `entropy` of the
    whole distribution at the first temperature, nats, zeros where it was not asked for.
    """

    logprobs: tuple[torch.Tensor, ...]
    entropy: torch.Tensor


def score_tokens(model: Any, micro: MicroBatch, *, temperatures: tuple[float, ...], entropy: bool = False) -> TokenScores:
    """Log-probs of softmax(logits / temperature) at the labels, for several temperatures from one forward pass; gradients flow."""
    logits = label_logits(model, micro)
    found = [_at_labels(logits / temperature, micro.labels) for temperature in temperatures]
    mean = _entropy(logits / temperatures[0]) if entropy else torch.zeros_like(found[0].detach())
    return TokenScores(logprobs=tuple(found), entropy=mean)


def token_values(critic: Any, micro: MicroBatch) -> torch.Tensor:
    """The critic's value, float32 [M], of the text before each label; gradients flow."""
    values: torch.Tensor = critic(**micro.inputs, use_cache=False).logits[..., 0]
    return values.flatten()[micro.at].float()


def label_logits(model: Any, micro: MicroBatch, **told: Any) -> torch.Tensor:
    """float32 [M, V]: those that predict the labels. `told` goes to the model beside the micro-batch's inputs."""
    logits = model(**micro.inputs, use_cache=False, **told).logits
    chosen: torch.Tensor = logits.flatten(0, 1)[micro.at].float()
    return chosen


def _at_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = logits.gather(-1, labels[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return found


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    normalized = logits.log_softmax(-1)
    # Logits of minus infinity (a vocabulary with forbidden tokens) have probability 0 and add nothing.
    return -(normalized.exp() * normalized.masked_fill(normalized == -torch.inf, 0.0)).sum(-1)
