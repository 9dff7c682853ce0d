"""Every setting counts: read by some code, or refused because nothing installed declares what it needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lightrft.config import Config
from lightrft.config.checks import NEEDS
from lightrft.config.ignored import POINTLESS
from lightrft.plugins import Capability, PluginEntry, Registry, StrategySpec
from lightrft.plugins.registry import Provider

PACKAGES = Path(__file__).resolve().parent.parent / "packages"
SCHEMA = PACKAGES / "core/src/lightrft/config/schema.py"


def attributes_read() -> set[str]:
    """Every `x.name` that is read in the sources of the packages, but not in the schema itself."""
    found: set[str] = set()
    for file in PACKAGES.glob("*/src/**/*.py"):
        if file != SCHEMA:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return found


def refused(name: str, registry: Registry) -> bool:
    """Whether no installed plugin has the capability that the setting, or the one that it belongs to, needs: then the checks refuse it."""
    lacking = any(need.field == name and not registry.having(need.kind, need.capability) for need in NEEDS)
    return lacking or any(name in rule.fields and refused(rule.on, registry) for rule in POINTLESS)


READ = attributes_read()


@pytest.mark.parametrize("name", Config.model_fields)
def test_the_setting_counts(name):
    assert name in READ or refused(name, Registry.discover())


def test_a_setting_that_nothing_reads_would_be_found():
    assert "no_such_setting" not in READ
    assert not refused("no_such_setting", Registry.discover())
    assert not refused("zero_stage", _everything()), "what a plugin declares it has to read"


def _everything() -> Registry:
    spec = StrategySpec(name="able", target="a:b", capabilities=frozenset(Capability))
    return Registry([PluginEntry(provider=Provider(distribution="able-rft", version="1", entry_point="able"), spec=spec)])
