"""A sequence token by token, as plain data: texts, who wrote each, how likely it was, and what it is to be taught."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lightrft.batch.stages import Trainable

TextOf = Callable[[int], str]
"""A token's own text, special ones as they are."""

MAX_TOKENS = 2000
"""Of a longer sequence the last ones are kept."""

DIGITS = 4


def token_rows(experience: Trainable, place: int, *, text_of: TextOf) -> dict[str, Any]:
    """Of the sequence at this place: `texts`, `sampled` (`1` for each token that the policy sampled, else `0`), and for those alone, in
    order, `logprobs` and `advantages`; `left_out`, how many tokens stood before the first.

    A log-prob is the engine's, where it was asked for, else the actor's before the update; None where no pass was made for it.
    """
    begin, end = experience.offsets[place : place + 2].tolist()
    first = max(begin, end - MAX_TOKENS)
    mask = experience.loss_mask[first:end]
    logprobs = experience.engine_logprobs if bool(experience.has_logprobs[place]) else experience.old_logprobs
    return {
        "left_out": first - begin,
        "texts": [text_of(token) for token in experience.token_ids[first:end].tolist()],
        "sampled": "".join("1" if drawn else "0" for drawn in mask.tolist()),
        "logprobs": _rounded(logprobs[first:end][mask]),
        "advantages": _rounded(experience.advantages[first:end][mask]),
    }


def _rounded(values: torch.Tensor) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]
