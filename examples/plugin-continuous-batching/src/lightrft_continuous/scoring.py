"""Log-probabilities of tokens that were drawn, by one forward pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def logprobs_of(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[list[float]]:
    """Natural logs under the model as it is, one list for each completion of the prompt; untempered, unfiltered, in float32."""
    width = max(map(len, completions))
    rows = [[*prompt, *tokens, *[0] * (width - len(tokens))] for tokens in completions]  # what comes later changes nothing before it
    ids = torch.tensor(rows, device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=width + 1).logits[:, :-1].float()
    values = logits.log_softmax(-1).gather(-1, ids[:, len(prompt) :, None]).squeeze(-1).tolist()
    return [row[: len(tokens)] for row, tokens in zip(values, completions, strict=True)]
