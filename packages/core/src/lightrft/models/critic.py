"""Makes a critic of a causal language model. Its output layer gives one number for each position, not one for each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightrft.errors import ModelError


def make_critic(model: Any) -> nn.Module:
    """Changes `model` in place: `logits` [N, L, 1] are the values. For models on the meta device too; the new layer has values.

    The layer starts at zero (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", on the value head): the first advantages
    are the rewards themselves, and every rank starts with the same values. An embedding that was tied to the output keeps its weights.

    Raises:
        ModelError: the model has no output layer of its own.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise ModelError(f"{type(model).__name__} has no output layer that could give values; take a causal language model as the critic")
    value_head = nn.Linear(head.weight.shape[1], 1, bias=False, dtype=head.weight.dtype)
    value_head.weight = nn.Parameter(torch.zeros(1, head.weight.shape[1], dtype=head.weight.dtype))
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(value_head)
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        model.config.final_logit_softcapping = None  # it bounds logits, and would bound values
    critic: nn.Module = model
    return critic
