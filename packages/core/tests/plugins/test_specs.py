"""A spec is frozen, and refuses at once what could only fail later."""

from __future__ import annotations

import dataclasses

import pytest

from lightrft.plugins import Capability, EngineSpec, RewardSpec


def test_frozen_and_hashable():
    spec = RewardSpec(name="acme", target="a.b:c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"
    assert spec == RewardSpec(name="acme", target="a.b:c")
    assert len({spec, RewardSpec(name="acme", target="a.b:c")}) == 1


@pytest.mark.parametrize("target", ["", "a", "a:", ":b", "a:b:c"])
def test_target_form(target):
    with pytest.raises(ValueError, match="not of the form"):
        RewardSpec(name="acme", target=target)


@pytest.mark.parametrize("name", ["", " acme", "acme "])
def test_name_form(name):
    with pytest.raises(ValueError, match="is empty or has spaces around it"):
        RewardSpec(name=name, target="a:b")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": 7}, "plugin 7: name is 7, which is not a str"),
        ({"target": int}, "target is <class 'int'>, which is not a str of the form 'package.module:attribute'"),
        ({"capabilities": [Capability.SEED]}, "which is not a frozenset of Capability"),
        ({"cuda_only": ["seed"]}, "cuda_only is .'seed'., which is not a frozenset of Capability"),
        ({"runtime": "vllm"}, "runtime is 'vllm', which is not a Runtime or None"),
        ({"summary": None}, "summary is None, which is not a str"),
    ],
)
def test_fields_of_another_type_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        EngineSpec(**({"name": "acme", "target": "a:b"} | wrong))


def test_a_reason_is_for_what_is_not_declared():
    assert EngineSpec(name="acme", target="a:b", why_not={Capability.SEED: "one generator for all"}).why_not
    with pytest.raises(ValueError, match="why_not names 'seed', which it declares"):
        EngineSpec(name="acme", target="a:b", capabilities=frozenset({Capability.SEED}), why_not={Capability.SEED: "no"})


def test_topology_is_one_of_two():
    with pytest.raises(ValueError, match="topology 'ring' is not one of 'single_leader', 'spmd'"):
        EngineSpec(name="acme", target="a:b", topology="ring")


def test_capabilities_are_a_closed_set():
    assert EngineSpec(name="acme", target="a:b", capabilities=frozenset({Capability.SEED})).capabilities == {Capability.SEED}
    with pytest.raises(ValueError, match="'seed' is not a Capability"):
        EngineSpec(name="acme", target="a:b", capabilities=frozenset({"seed"}))


def test_each_capability_says_in_words_what_it_means():
    assert Capability("seed") is Capability.SEED
    assert str(Capability.SEED) == "seed"
    meanings = [capability.meaning for capability in Capability]
    assert len(set(meanings)) == len(meanings)
    assert all(meaning.strip() and "\n" not in meaning for meaning in meanings)
