"""Recomputed activations change memory and nothing else."""

from __future__ import annotations

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.strategy.recompute import recompute_activations
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train


def kept_bytes(model: torch.nn.Module) -> int:
    """What the graph of one forward pass holds."""
    held = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.ones(4, 64, dtype=torch.long))
    return held


def test_less_is_kept_in_eval_mode_too() -> None:
    plain, leaner = tiny_causal_lm(layers=6).eval(), tiny_causal_lm(layers=6).eval()
    recompute_activations(leaner)
    assert kept_bytes(leaner) < kept_bytes(plain) / 4


def test_the_update_is_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = []
    for recompute in (False, True):
        strategy = get_strategy(make_config({"strategy": "single", "gradient_checkpointing": recompute}), registry=fake_registry())
        model, optimizer = strategy.prepare_trainable(tiny_causal_lm(), optimizer=SETTINGS)
        train(strategy, model, optimizer, last=2)
        found.append(full_parameters(strategy, model))
    assert largest_difference(found[0], found[1]) == 0.0
