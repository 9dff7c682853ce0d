"""What models say of tokens: the only place where a model is called on a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.micro_batch import MicroBatch
from lightrft.models.heads import LabelRequest, score_labels


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Of M labels, float32 [M]: `logprobs`, natural logs, one for each temperature that was asked for, in their order; `entropy` of the
    whole distribution at the first temperature, nats, zeros where it was not asked for.
    """

    logprobs: tuple[torch.Tensor, ...]
    entropy: torch.Tensor


def score_tokens(
    model: Any, micro: MicroBatch, *, temperatures: tuple[float, ...], entropy: bool = False, fused_chunk: int | None = None
) -> TokenScores:
    """Log-probs of softmax(logits / temperature) at the labels, for several temperatures from one forward pass; gradients flow.

    Logits are computed at labels only and a chunk at a time, and none is kept. `fused_chunk`: so many tokens at a time, by the fused
    implementation; None: by the plain one.
    """
    request = LabelRequest(rows=micro.at, labels=micro.labels, temperatures=temperatures, entropy=entropy, chunk_size=fused_chunk)
    found = score_labels(model, request, **micro.inputs)
    mean = torch.zeros_like(found.logprobs[0].detach()) if found.entropy is None else found.entropy
    return TokenScores(logprobs=found.logprobs, entropy=mean)


def token_values(critic: Any, micro: MicroBatch) -> torch.Tensor:
    """The critic's value, float32 [M], of the text before each label; gradients flow."""
    values: torch.Tensor = critic(**micro.inputs, use_cache=False).logits[..., 0]
    return values.flatten()[micro.at].float()


def label_logits(model: Any, micro: MicroBatch, **told: Any) -> torch.Tensor:
    """float32 [M, V]: those that predict the labels. `told` goes to the model beside the micro-batch's inputs."""
    logits = model(**micro.inputs, use_cache=False, **told).logits
    chosen: torch.Tensor = logits.flatten(0, 1)[micro.at].float()
    return chosen
