"""What models say of tokens: the only place where a model is called on a micro-batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.micro_batch import MicroBatch
from lightrft.models.attention import packed_forward
from lightrft.models.heads import LabelRequest, score_labels
from lightrft.models.router_balance import Route, balance, routes_of


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Of M labels, float32 [M]: `logprobs`, natural logs, one for each temperature that was asked for, in their order; `entropy` of the
    whole distribution at the first temperature, nats, zeros where it was not asked for. `balance`, float32 []: of the experts, summed over
    the sequences (`models.router_balance`); 0 where it was not asked for.
    """

    logprobs: tuple[torch.Tensor, ...]
    entropy: torch.Tensor
    balance: torch.Tensor


def score_tokens(
    model: Any,
    micro: MicroBatch,
    *,
    temperatures: tuple[float, ...],
    entropy: bool = False,
    fused_chunk: int | None = None,
    router_balance: bool = False,
) -> TokenScores:
    """Log-probs of softmax(logits / temperature) at the labels, for several temperatures from one forward pass; gradients flow.

    Logits are computed at labels only and a chunk at a time, and none is kept. `fused_chunk`: so many tokens at a time, by the fused
    implementation; None: by the plain one. `router_balance`: of the places whose states predict labels, where rows are whole.

    Raises:
        ModelError: `router_balance` of a model without routers.
    """
    request = LabelRequest(rows=micro.at, labels=micro.labels, temperatures=temperatures, entropy=entropy, chunk_size=fused_chunk)
    with _attention_for(micro), _routes(model, router_balance) as routes:
        found = score_labels(model, request, **micro.inputs)
    even = torch.zeros((), device=micro.at.device)
    if router_balance:
        even = balance(routes, at=micro.at, rows=micro.grid.rows, num_sequences=micro.grid.shape[0])
    mean = torch.zeros_like(found.logprobs[0].detach()) if found.entropy is None else found.entropy
    *logprobs, mean = micro.parts.whole([*found.logprobs, mean])
    return TokenScores(logprobs=tuple(logprobs), entropy=mean, balance=even)


def token_values(critic: Any, micro: MicroBatch) -> torch.Tensor:
    """The critic's value, float32 [M], of the text before each label; gradients flow."""
    with _attention_for(micro):
        values: torch.Tensor = critic(**micro.inputs, use_cache=False).logits[..., 0]
    [whole] = micro.parts.whole([values.flatten()[micro.at].float()])
    return whole


def label_logits(model: Any, micro: MicroBatch, **told: Any) -> torch.Tensor:
    """float32 [m, V]: those that predict the labels of this rank's part; `micro.parts` makes columns of them whole.

    `told` goes to the model beside the micro-batch's inputs.
    """
    with _attention_for(micro):
        logits = model(**micro.inputs, use_cache=False, **told).logits
    chosen: torch.Tensor = logits.flatten(0, 1)[micro.at].float()
    return chosen


def _routes(model: Any, asked: bool) -> AbstractContextManager[list[Route]]:
    return routes_of(model) if asked else nullcontext([])


def _attention_for(micro: MicroBatch) -> AbstractContextManager[object]:
    """In a packed row every layer has to be told where sequences end."""
    return packed_forward() if "cu_seq_lens_q" in micro.inputs else nullcontext()
