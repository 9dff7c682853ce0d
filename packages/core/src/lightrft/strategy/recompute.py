"""Keeps fewer activations. Each block computes its own again in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from lightrft.strategy.sharding import find_blocks


def recompute_activations(model: nn.Module) -> None:
    """Changes the model's blocks in place: only what goes into a block is kept for the backward pass.

    Not transformers' own `gradient_checkpointing_enable`, which works in training mode only: our models are in eval mode. Models have no
    dropout then, so no random state has to come back.

    Raises:
        ModelError: the model has no blocks.
    """
    for block in find_blocks(model):
        # Hooks of a backend stay outside: they belong to the call, not to `forward`.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
