"""The parity measurement sees a backend that learns something else. Faults planted in `single`, one process."""

from __future__ import annotations

import math

import pytest
import torch

from lightrft.strategy.single import SingleStrategy
from lightrft.testing.parity import BOUND, CASES, Distance, Measured, distance, farthest, measure

ACCUMULATED = [case for case in CASES if case.name == "accumulation 3"]
CLIPPED = [case for case in CASES if case.name == "clipping"]


def one(cases):
    (found,) = measure({"single": ({"strategy": "single"}, cases)})["single"].values()
    return found


def test_a_backend_is_at_no_distance_from_itself():
    assert distance(one(ACCUMULATED), one(ACCUMULATED)) == Distance(gradients=0.0, norms=0.0, parameters=0.0)


def test_the_gradient_that_is_read_off_the_step_is_autograd_s(monkeypatch):
    seen = {}
    step = SingleStrategy._step

    def watching(self, optimizer, model, max_norm):
        if not seen:
            seen.update({f"actor/{name}": p.grad.clone() for name, p in model.named_parameters()})
        return step(self, optimizer, model, max_norm)

    monkeypatch.setattr(SingleStrategy, "_step", watching)
    found = one(ACCUMULATED).gradients
    assert found.keys() == seen.keys()
    for name, gradient in seen.items():
        assert float((found[name] - gradient).abs().max() / gradient.abs().max()) < 1e-6


def test_a_mean_over_micro_batches_is_seen_in_the_gradients_and_norms(monkeypatch):
    expected = one(ACCUMULATED)
    monkeypatch.setattr(SingleStrategy, "_backward", lambda self, loss, model, optimizer, final: torch.autograd.backward(loss / 3))
    found = distance(one(ACCUMULATED), expected)
    assert found.gradients == pytest.approx(2 / 3, rel=1e-4)
    assert found.norms > 0.5
    assert not found.within(BOUND)


def test_a_clip_left_out_is_seen_in_the_parameters(monkeypatch):
    expected = one(CLIPPED)
    assert all(norm > 0.5 for norm in expected.norms)  # so the clip at 0.5 did something
    step = SingleStrategy._step
    monkeypatch.setattr(SingleStrategy, "_step", lambda self, optimizer, model, max_norm: step(self, optimizer, model, 0.0))
    found = distance(one(CLIPPED), expected)
    assert found.gradients == 0.0  # read off an unclipped step
    assert found.parameters > 10 * BOUND.parameters


def test_a_clip_over_both_models_is_seen(monkeypatch):
    """The fault of a critic's optimizer that clips the actor: here the actor is clipped by the norm that the critic is asked for."""
    (both,) = [case for case in CASES if case.with_critic]
    expected = one([both])
    assert {name.split("/")[0] for name in expected.parameters} == {"actor", "critic"} and len(expected.norms) == 2 * 5
    step = SingleStrategy._step
    shared = both.max_norm
    monkeypatch.setattr(
        SingleStrategy, "_step", lambda self, optimizer, model, norm: step(self, optimizer, model, shared if norm else norm)
    )
    found = distance(one([both]), expected)
    assert found.gradients == 0.0 and not found.within(BOUND)


def test_distances_by_hand():
    expected = Measured(gradients={"w": torch.tensor([2.0, -4.0])}, norms=[5.0, 10.0], parameters={"w": torch.tensor([1.0])})
    near = Measured(gradients={"w": torch.tensor([2.0, -4.5])}, norms=[5.0, 9.0], parameters={"w": torch.tensor([1.25])})
    assert distance(near, expected) == Distance(gradients=0.125, norms=pytest.approx(0.1), parameters=0.25)
    assert farthest([expected, near], expected) == distance(near, expected)


def test_not_a_number_is_beyond_every_bound():
    assert BOUND.within(BOUND)
    assert not Distance(gradients=math.nan, norms=0.0, parameters=0.0).within(BOUND)
    well = Measured(gradients={"w": torch.ones(1)}, norms=[1.0, 1.0], parameters={"w": torch.ones(1)})
    sick = Measured(gradients={"w": torch.full((1,), math.nan)}, norms=[1.0, math.nan], parameters={"w": torch.ones(1)})
    for ranks in ([sick, well], [well, sick]):
        far = farthest(ranks, well)
        assert math.isnan(far.gradients) and math.isnan(far.norms) and not far.within(BOUND)
