"""How the settings partition a rollout, and which passes over it they make unnecessary."""

from __future__ import annotations

from typing import Any

from lightrft.batch.images import BlankPrompt
from lightrft.batch.planning import Batching
from lightrft.config.schema import Config
from lightrft.models.image_positions import image_positions
from lightrft.strategy.strategy_base import StrategyBase


def update_batching(
    config: Config, strategy: StrategyBase, *, model: Any, training: bool = True, blank: BlankPrompt | None = None
) -> Batching:
    """The steps and micro-batches of an update of `model`; `training` False: with the micro-batches of passes that have no gradients.
    `blank`: see `Batching`.
    """
    inner = strategy.unwrap(model)
    return Batching(
        train_batch_size=config.train_batch_size,
        micro_batch_size=config.micro_train_batch_size if training else config.micro_rollout_batch_size,
        max_epochs=config.max_epochs,
        token_budget=config.max_tokens_per_micro_batch if config.packing_samples else 0,
        balance=config.balance_ranks or config.packing_samples,
        sequence=strategy.mesh.sequence,
        blank=blank,
        positions=None if blank is None else image_positions(inner),
        attention_length=_attention_length(inner.config),
    )


def _attention_length(model_config: Any) -> float:
    """Tokens of a sequence whose attention costs as much as the rest of its blocks.

    A block of width h multiplies each token by about 12 h^2 weights; causal attention multiplies and adds it with half of n others, by
    queries and keys and by weights and values: n h.
    """
    return 12.0 * float(model_config.get_text_config().hidden_size)


def fused_chunk(config: Config) -> int | None:
    """Tokens at a time of the fused log-probs; None: the plain ones are asked for."""
    return config.chunk_size if config.fused_linear_logprob else None


def needs_old_logprobs(config: Config, *, num_steps: int) -> bool:
    """Whether the actor's log-probs have to be known before the update.

    Where one optimizer step follows its rollout the old policy is the one that is updated, so the update's own log-probs are the old ones
    and their ratio is 1. A KL penalty compares with them before; a correction weighs by them.
    """
    return num_steps > 1 or config.max_epochs > 1 or config.kl_coef > 0 or config.corrects
