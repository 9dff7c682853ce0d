"""Whether an update is that of one process with padded rows, however rows are made and shared: the cases, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightrft.batch.collect import sequences_of
from lightrft.batch.micro_batch import MicroBatch
from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.experience.batching import fused_chunk, update_batching
from lightrft.models.attention import use_our_attention
from lightrft.models.score import score_tokens
from lightrft.strategy.factory import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.packed_rows import VOCAB, family, reference
from lightrft.testing.parity import GRADIENT_STEP, STEPS, Measured
from lightrft.testing.workload import SETTINGS, full_parameters
from lightrft.types import Completion

VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {"packing_samples": True, "max_tokens_per_micro_batch": 48},
    "sp 2": {"sp_size": 2},
    "sp 4": {"sp_size": 4},
    "fused": {"fused_linear_logprob": True, "chunk_size": 5},
    "all": {"packing_samples": True, "max_tokens_per_micro_batch": 48, "sp_size": 2, "fused_linear_logprob": True, "chunk_size": 5},
}
"""The settings that make the rows. One sequence is longer than the budget."""

NORMAL = 0.02
"""Standard deviation of a model's weights: larger ones turn rounding into differences that say nothing."""

MODELS = ("qwen3", "llama", "gemma2", "tied")

PROMPTS = (4, 9, 1, 3, 6, 2, 5, 7, 3, 8, 1, 4)
ANSWERS = (7, 0, 12, 1, 5, 50, 3, 9, 2, 17, 1, 6)
HOLE = slice(4 + 2, 4 + 5)
"""Of the first sequence: tokens of its answer that the policy did not sample."""


def rollout(step: int) -> Sampled:
    """Ragged sequences, an empty answer among them, one with a hole in its mask; others for each step."""
    generator = torch.Generator().manual_seed(100 + step)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCAB, (count,), generator=generator).tolist()

    pairs = [
        (tokens(p), Completion(token_ids=tokens(a), finish_reason="stop", weight_version=0)) for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    batch = sequences_of(pairs, group_ids=list(range(len(pairs))))
    batch.loss_mask[HOLE] = False
    return batch


def places_of(rank: int, size: int) -> torch.Tensor:
    """The sequences of a data rank, of `size`: uneven, and none on the last of four."""
    owners = torch.tensor([(i * i + i // 5) % min(size, 3) for i in range(len(PROMPTS))])
    return (owners == rank).nonzero().flatten()


def measure_rows(cells: Sequence[tuple[Mapping[str, Any], str]]) -> list[Measured]:
    """For each (settings, model) the first gradients, and parameters after `STEPS` steps of AdamW. For each rank of `run_spmd`."""
    found = []
    for settings, model in cells:
        strategy = get_strategy(make_config({"micro_train_batch_size": 3, **settings}))
        found.append(measured(strategy, model))
        strategy.shutdown()
    return found


def measured(strategy: StrategyBase, name: str) -> Measured:
    """One model with a strategy that is there. Collective."""
    start = {key: p.detach().clone() for key, p in _model(strategy, name).named_parameters()}
    moved, _ = _trained(strategy, name, GRADIENT_STEP, steps=1)
    unit = GRADIENT_STEP.eps / GRADIENT_STEP.learning_rate
    parameters, norms = _trained(strategy, name, SETTINGS, steps=STEPS)
    return Measured(gradients={key: (start[key] - moved[key]) * unit for key in moved}, norms=norms, parameters=parameters)


def _trained(strategy: StrategyBase, name: str, settings: AdamWSettings, *, steps: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    model, optimizer = strategy.prepare_trainable(_model(strategy, name), optimizer=settings)
    norms = []
    for step in range(steps):
        _accumulate(strategy, model, optimizer, rollout(step))
        norms.append(strategy.optimizer_step(optimizer, model, None, max_norm=0.0).grad_norm)
    return full_parameters(strategy, model), norms


def _accumulate(strategy: StrategyBase, model: Any, optimizer: Any, batch: Sampled) -> None:
    batching, device = update_batching(strategy.config, strategy, model=model), strategy.world.device
    total = int(batch.num_sampled.sum())

    def loss_share(index: torch.Tensor) -> torch.Tensor:
        micro = batching.micro(batch, index, device=device)
        logprobs = score_tokens(model, micro, temperatures=(0.7,), fused_chunk=fused_chunk(strategy.config)).logprobs[0]
        return -(logprobs * _weights(batch, index, micro)).sum() / total

    mine = places_of(strategy.mesh.data.rank, strategy.mesh.data.size)
    strategy.accumulate(batching.micro_batches(batch, mine), loss_share, model, optimizer)


def _weights(batch: Sampled, index: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
    """[M]: another for each token, so that two of them cannot be exchanged unseen."""
    chosen = batch.select(index)
    return (1.0 + chosen.sampled(chosen.token_ids) % 7).to(micro.labels.device)


def _model(strategy: StrategyBase, name: str) -> Any:
    config = strategy.config
    if not config.packing_samples and config.sp_size == 1:
        return _normal(reference(name))
    model = _normal(family(name))
    use_our_attention(model, setting="packing_samples=True" if config.packing_samples else f"sp_size={config.sp_size}")
    return model


def _normal(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * NORMAL
            parameter.copy_(noise if parameter.dim() > 1 else 1.0 + noise)
    return model
