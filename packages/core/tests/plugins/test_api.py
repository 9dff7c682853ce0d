"""Core and plugins of an older and of a newer API. It takes a range of numbers, and beyond it names the side to upgrade."""

from __future__ import annotations

import sys

import pytest

import lightrft
from lightrft.errors import PluginApiError, PluginBrokenError
from lightrft.plugins import API_VERSION, OLDEST_API, Registry, RewardSpec, api

HERE = lightrft.__version__
OLDER_LIGHTRFT, NEWER_LIGHTRFT = "lightrft<0.0.9,>=0.0.1", "lightrft>=77.1"


@pytest.fixture
def takes_2_to_4(monkeypatch):
    monkeypatch.setattr(api, "OLDEST_API", 2)
    monkeypatch.setattr(api, "API_VERSION", 4)


def states(registry: Registry) -> dict[str, str]:
    return {row.name: row.state for row in registry.entries("reward")}


def test_the_range_holds_its_ends():
    assert 1 <= OLDEST_API <= API_VERSION


def test_a_spec_without_a_number_is_of_the_first_api_and_not_of_the_one_that_is_installed(takes_2_to_4):
    assert RewardSpec(name="acme", target="a:b").api == 1


@pytest.mark.usefixtures("takes_2_to_4")
@pytest.mark.parametrize("number", [2, 3, 4])
def test_an_older_plugin_within_the_range_is_used_as_it_is(install, plugin_source, number):
    install("acme-rft", **{f"acme_of_api_{number}": plugin_source(more=f"api={number}", target="math:sqrt")})
    registry = Registry.discover()
    assert states(registry)["acme"] == "ok"
    assert registry.spec("reward", "acme").api == number
    assert registry.load("reward", "acme")(9.0) == 3.0


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (OLDEST_API - 1, "upgrade acme-rft, or install an older lightrft: pip install -U acme-rft"),
        (API_VERSION + 1, "upgrade lightrft, or install an older acme-rft: pip install -U lightrft"),
    ],
)
def test_beyond_the_range_the_message_says_which_side_to_upgrade(install, plugin_source, number, remedy):
    install("acme-rft", version="0.9", **{f"acme_of_api_{number}": plugin_source(more=f"api={number}")})
    registry = Registry.discover()
    assert states(registry)["acme"] == "other api"
    assert "acme" not in registry.names("reward")
    assert "exact_match" in registry.names("reward"), "it breaks no other"
    for ask in (registry.entry, registry.load, registry.spec):
        with pytest.raises(PluginApiError) as caught:
            ask("reward", "acme")
        assert str(caught.value) == f"reward 'acme': acme-rft 0.9 is written for plugin API {number}, lightrft {HERE} takes 1: {remedy}"


@pytest.mark.usefixtures("takes_2_to_4")
def test_a_range_is_told_by_its_ends(install, plugin_source):
    install("acme-rft", acme_too_old=plugin_source())
    [row] = [row for row in Registry.discover().entries("reward") if row.name == "acme"]
    assert f"is written for plugin API 1, lightrft {HERE} takes 2 to 4: upgrade acme-rft" in row.reason


# A plugin that uses what this lightrft does not have fails before it can tell its number: then its requirement says which side is old.

FAILS = "from lightrft.plugins import TeleportSpec"
IMPORT_ERROR = "ImportError: cannot import name 'TeleportSpec'"


@pytest.mark.parametrize(
    ("requires", "specifier", "remedy"),
    [
        (NEWER_LIGHTRFT, ">=77.1", "upgrade lightrft, or install an older acme-rft: pip install -U lightrft"),
        ("lightrft~=77.1", "~=77.1", "upgrade lightrft, or install an older acme-rft: pip install -U lightrft"),
        (OLDER_LIGHTRFT, "<0.0.9,>=0.0.1", "upgrade acme-rft, or install an older lightrft: pip install -U acme-rft"),
        ("lightrft==0.0.1", "==0.0.1", "upgrade acme-rft, or install an older lightrft: pip install -U acme-rft"),
    ],
)
def test_a_plugin_of_another_lightrft_that_fails_to_import_is_told_apart_from_a_broken_one(install, requires, specifier, remedy):
    install("acme-rft", requires=requires, teleport=FAILS)
    registry = Registry.discover()
    [row] = [row for row in registry.entries() if row.name == "teleport"]
    assert row.state == "other api"
    assert row.reason.startswith(IMPORT_ERROR)
    assert row.reason.endswith(f"acme-rft requires lightrft {specifier}, this is {HERE}: {remedy}")
    with pytest.raises(PluginApiError, match="requires lightrft") as caught:
        registry.entry("engine", "teleport")
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("requires", [None, f"lightrft>={HERE}", "torch>=99", "lightrft-backend-fsdp>=99", "not a requirement !!"])
def test_with_the_right_requirement_it_is_just_broken(install, requires):
    install("acme-rft", requires=requires, teleport=FAILS)
    with pytest.raises(PluginBrokenError, match=IMPORT_ERROR) as caught:
        Registry.discover().entry("engine", "teleport")
    assert "requires" not in str(caught.value)


def test_code_that_fails_on_first_use_is_told_apart_as_well(install, plugin_source):
    install("acme-rft", requires=NEWER_LIGHTRFT, acme_lazy=plugin_source(target="acme_lazy_code:f"), acme_lazy_code=FAILS)
    registry = Registry.discover()
    assert states(registry)["acme"] == "ok", "its number fits: only what fails is looked into"
    with pytest.raises(PluginApiError) as caught:
        registry.load("reward", "acme")
    text = str(caught.value)
    assert IMPORT_ERROR in text and text.endswith("pip install -U lightrft") and "\n" not in text
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_plugin_of_another_lightrft_that_works_is_left_in_peace(install, plugin_source):
    install("acme-rft", requires=NEWER_LIGHTRFT, acme_works=plugin_source(target="math:sqrt"))
    assert Registry.discover().load("reward", "acme")(4.0) == 2.0
    assert "math" in sys.modules
