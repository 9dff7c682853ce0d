"""`single` in bfloat16: products in bfloat16 over float32 parameters, log-probs of both kinds of head, gradients in float32."""

from __future__ import annotations

import pytest
import torch

from lightrft.batch.micro_batch import padded
from lightrft.batch.stages import Sampled
from lightrft.config.load import make_config
from lightrft.models.score import score_tokens
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.batches import batch_of
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm


def strategy(**settings: object) -> StrategyBase:
    return get_strategy(make_config({"strategy": "single", **settings}), registry=fake_registry())


@pytest.mark.parametrize("fused_chunk", [None, 4])
def test_scores_and_gradients_are_those_of_float32_but_for_rounding(fused_chunk: int | None) -> None:
    batch = batch_of(Sampled, [([3, 4, 5], [6, 7, 8, 9]), ([10], [11, 12])])
    micro = padded(batch, torch.arange(2), device=torch.device("cpu"))
    found = []
    for bf16 in (False, True):
        unit = strategy(bf16=bf16)
        model, optimizer = unit.prepare_trainable(tiny_causal_lm(), optimizer=AdamWSettings(learning_rate=1e-3))
        [logprobs] = score_tokens(model, micro, temperatures=(1.0,), fused_chunk=fused_chunk).logprobs
        unit.backward(logprobs.sum(), model, optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert {p.dtype for p in model.parameters()} == {g.dtype for g in gradients} == {torch.float32}
        found.append((logprobs.detach(), torch.cat([g.flatten() for g in gradients])))
    (exact, exact_gradient), (rounded, rounded_gradient) = found
    assert 0 < (rounded - exact).abs().max() < 0.05
    assert 0 < (rounded_gradient - exact_gradient).norm() < 0.03 * exact_gradient.norm()


def test_a_frozen_model_is_held_in_bfloat16() -> None:
    model = strategy(bf16=True).prepare_model(tiny_causal_lm())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(b.dtype is torch.float32 for b in model.buffers() if b.is_floating_point())
    assert model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.dtype is torch.bfloat16
