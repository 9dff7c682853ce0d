"""Frozen models that rest in host memory give what they always gave, and are on the device for their passes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.errors import CapabilityError
from lightrft.plugins.registry import Registry
from lightrft.strategy import get_strategy, resting
from lightrft.strategy.single import SingleStrategy
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_causal_lm

IDS = torch.arange(24).reshape(2, 12)


def strategy(**settings: Any) -> SingleStrategy:
    found = get_strategy(make_config({"strategy": "single", "offload_frozen": True, **settings}), registry=fake_registry())
    assert isinstance(found, SingleStrategy)
    return found


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The elements of every copy to the device, in order."""
    seen: list[int] = []
    copy = resting._device_copy

    def noted(host: torch.Tensor, device: torch.device) -> torch.Tensor:
        seen.append(host.numel())
        return copy(host, device)

    monkeypatch.setattr(resting, "_device_copy", noted)
    return seen


@torch.no_grad()
def test_each_parameter_travels_once_for_a_block_and_its_bits_are_what_they_were(moves: list[int]) -> None:
    unit = strategy()
    model, plain = unit.prepare_model(tiny_causal_lm(tie=True)), tiny_causal_lm(tie=True).eval()
    expected, sizes = plain(input_ids=IDS).logits, [p.numel() for p in plain.parameters()]
    assert moves == []
    with unit.on_device(model), unit.on_device(model):
        found = [model(input_ids=IDS).logits for _ in range(3)]
    assert moves == sizes
    found.append(model(input_ids=IDS).logits)  # by itself
    assert moves == 2 * sizes
    assert all(torch.equal(logits, expected) for logits in found)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
def test_the_parameters_of_a_model_that_goes_with_the_device_are_gone() -> None:
    """On the meta device nothing is held: what is there between passes is the host's copy, what is there in a pass is not."""
    model = tiny_causal_lm()
    rest = resting.Rest(model, torch.device("meta"))
    for begins in (True, False):
        (rest.begin if begins else rest.end)(model)
        assert {p.device.type for p in model.parameters()} == {"meta" if begins else "cpu"}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), tiny_causal_lm().parameters(), strict=True))
    assert {b.device.type for b in model.buffers()} == {"cpu"}


@torch.no_grad()
def test_a_pass_that_fails_leaves_the_model_at_rest(moves: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    unit = strategy()
    model = unit.prepare_model(tiny_causal_lm())
    places = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(TypeError):
        model(input_ids="no ids")
    with pytest.raises(RuntimeError, match="in the block"), unit.on_device(model):
        raise RuntimeError("in the block")
    assert [p.data_ptr() for p in model.parameters()] == places

    def full(host: torch.Tensor, device: torch.device) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(resting, "_device_copy", full)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                model(input_ids=IDS)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert torch.equal(model(input_ids=IDS).logits, tiny_causal_lm().eval()(input_ids=IDS).logits)


@torch.no_grad()
def test_a_reference_that_is_refreshed_while_it_rests_has_the_new_values() -> None:
    unit, other = strategy(), tiny_causal_lm(seed=7)
    reference = unit.prepare_model(tiny_causal_lm())
    for mine, new in zip(reference.parameters(), other.parameters(), strict=True):
        mine.copy_(new)
    assert torch.equal(reference(input_ids=IDS).logits, other.eval()(input_ids=IDS).logits)
    reference.load_state_dict(tiny_causal_lm(seed=8).state_dict())
    assert torch.equal(reference(input_ids=IDS).logits, tiny_causal_lm(seed=8).eval()(input_ids=IDS).logits)


def test_a_model_that_is_trained_or_averaged_does_not_rest(moves: list[int]) -> None:
    unit = strategy(ema_beta=0.9)
    average = unit.prepare_ema_model(tiny_causal_lm())
    with torch.no_grad(), unit.on_device(average), unit.on_device(nn.Linear(1, 1)):
        average(input_ids=IDS)
    assert moves == []


def test_it_is_refused_where_no_model_would_rest_and_where_none_can() -> None:
    told = "offload_frozen=True has no effect: no reference model (kl_coef=0) and no reward model (model:FOLDER) is held; leave it out"
    for kl_coef, expected in ((0.0, [told]), (0.1, [])):
        config = make_config({"strategy": "single", "reward": ["exact_match"], "offload_frozen": True, "kl_coef": kl_coef})
        assert [*check_rewards(config, registry=Registry.discover())] == expected
    unit = strategy()
    unit.spec = replace(unit.spec, capabilities=frozenset())
    with pytest.raises(CapabilityError, match="offload_frozen=True needs the capability 'frozen_offload', which strategy 'single'"):
        unit.prepare_model(tiny_causal_lm())
