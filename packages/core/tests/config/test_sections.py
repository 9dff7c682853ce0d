"""Settings that a plugin's spec brings: from recipes, flags and namespaces; saved, checked, and refused with the nearest name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from lightrft.algorithms.cpgd_settings import CPGDSettings
from lightrft.cli.flags import parse
from lightrft.config.arguments import add_arguments
from lightrft.config.checks import check
from lightrft.config.load import as_config, make_config
from lightrft.config.sections import installed_sections, settings_of
from lightrft.errors import ConfigError, PluginBrokenError
from lightrft.plugins.registry import Registry
from lightrft.plugins.settings import PluginSettings
from lightrft.plugins.specs import PolicyLossSpec

CPGD = {"policy_loss": "cpgd"}


class AcmeSettings(PluginSettings):
    """Of a third party."""

    strength: float = Field(0.5, gt=0, description="how much")
    mode: str = Field("plain", description="how")


def told(config: Any) -> float:
    found = settings_of(config, Registry.discover().spec("policy_loss", "cpgd"))
    assert isinstance(found, CPGDSettings)
    return found.drift_coef


def test_a_recipe_a_flag_and_a_namespace_say_the_same() -> None:
    assert told(make_config(CPGD)) == 0.0
    assert told(make_config(CPGD | {"cpgd": {"drift_coef": 0.25}})) == 0.25
    assert told(make_config(CPGD | {"cpgd.drift_coef": "0.25"})) == 0.25
    assert told(make_config(CPGD | {"cpgd": {"drift_coef": 0.5}, "cpgd.drift_coef": "0.25"})) == 0.25, "a flag wins"
    args = add_arguments(argparse.ArgumentParser()).parse_args(["--policy_loss", "cpgd", "--cpgd.drift_coef", "0.25"])
    assert told(as_config(args)) == 0.25
    flags = parse(["--policy_loss", "cpgd", "--cpgd.drift-coef", "0.25"], command="train", description="", nproc_help="")
    assert flags.problems == [] and told(make_config(flags.settings)) == 0.25


def test_a_saved_configuration_is_the_same_again() -> None:
    config = make_config(CPGD | {"cpgd": {"drift_coef": 0.25}})
    assert make_config(yaml.safe_load(yaml.safe_dump(config.model_dump()))) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"plugins": True}, "plugins=True: input should be a valid dictionary"),
        ({"plugins": "0"}, "plugins='0': input should be a valid dictionary"),
        ({"plugins": {"cpgd": True}}, "cpgd=True: expected lines of the form `setting: value`, the settings of plugin 'cpgd'"),
        ({"plugins": {1: {}}}, "unknown key '1'; no installed plugin '1' has settings"),
        ({"cpgd": {1: 2}}, "unknown key 'cpgd.1' (it has: drift_coef)"),
        ({"cpgd": {"drift_cof": 1}}, "unknown key 'cpgd.drift_cof'; did you mean 'drift_coef'? (it has: drift_coef)"),
        ({"cpgd.drift_coef": "much"}, "cpgd.drift_coef='much': input should be a valid number"),
        ({"cpgd": {"drift_coef": -1}}, "cpgd.drift_coef=-1: input should be greater than or equal to 0"),
        ({"cpdg": {"drift_coef": 1}}, "unknown key 'cpdg'; did you mean 'cpgd'?; no installed plugin 'cpdg' has settings"),
        ({"ppo_clip.x": 1}, "no installed plugin 'ppo_clip' has settings"),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(values | {"seed": "x"})
    assert any(words in line for line in caught.value.problems), caught.value.problems
    assert any(line.startswith("seed='x'") for line in caught.value.problems), "all problems at once"


def test_settings_of_a_plugin_that_is_not_chosen_have_no_effect(tmp_path: Path) -> None:
    config = make_config({"cpgd": {"drift_coef": 0.25}, "strategy": "single", "engine_type": "hf"})
    with pytest.raises(ConfigError) as caught:
        check(config, registry=Registry.discover(), world_size=1)
    words = "cpgd.drift_coef=0.25 has no effect with policy_loss='ppo_clip'; set policy_loss to cpgd, or leave it out"
    assert words in caught.value.problems


def test_a_third_party_brings_its_own() -> None:
    sys.modules.setdefault(__name__, sys.modules[AcmeSettings.__module__])
    spec = PolicyLossSpec(name="acme", target="acme:loss", settings=f"{__name__}:AcmeSettings")
    config = make_config({"acme": {"strength": 2}}, sections={"acme": AcmeSettings})
    assert settings_of(config, spec) == AcmeSettings(strength=2.0, mode="plain")
    assert settings_of(config, PolicyLossSpec(name="other", target="a:b")) is None
    for wrong, words in (
        (f"{__name__}:CPGD", "not a subclass of PluginSettings"),
        ("nowhere:X", "cannot be imported: ModuleNotFoundError"),
    ):
        with pytest.raises(PluginBrokenError, match=words):
            settings_of(config, PolicyLossSpec(name="acme", target="acme:loss", settings=wrong))
    with pytest.raises(ValueError, match="settings 'acme' is not of the form"):
        PolicyLossSpec(name="acme", target="acme:loss", settings="acme")
    assert installed_sections()["cpgd"] is CPGDSettings
