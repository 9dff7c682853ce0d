"""The pages about plugins are what the code says. Its tables, its messages, its commands."""

from __future__ import annotations

import re

import pytest

import plugin_tables
from lightrft.cli.main import app
from lightrft.engine.base import InferenceEngine
from lightrft.plugins import Capability
from lightrft.plugins.api import API_VERSION, problem_with_api
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.testing.conformance import requirements

PAGES = [page.read_text(encoding="utf-8") for page in plugin_tables.PAGES]
TEXT = "".join(PAGES)


def rows(name: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in plugin_tables.TABLES[name]()[2:]]


def test_its_tables_are_up_to_date():
    assert plugin_tables.brought_up_to_date(PAGES) == PAGES, "run `make docs`"


def test_a_stale_table_would_be_found():
    stale = [page.replace("| `backward` |", "| `backwards` |", 1) for page in PAGES]
    assert stale != PAGES
    assert plugin_tables.brought_up_to_date(stale) == PAGES


@pytest.mark.parametrize("change", [("table: kinds", "table: kind"), ("<!-- table: api numbers -->", "")])
def test_a_table_that_nobody_makes_or_that_is_missing_is_an_error(change):
    with pytest.raises(ValueError, match=r"the pages about plugins have the tables .*, the code makes "):
        plugin_tables.brought_up_to_date([page.replace(*change) for page in PAGES])


@pytest.mark.parametrize(("name", "contract"), [("strategy requirements", StrategyBase), ("engine requirements", InferenceEngine)])
def test_every_public_method_of_a_contract_has_a_requirement(name, contract):
    public = {method for method in plugin_tables.members(contract) if not method.startswith("_")} - {"needs_process_group"}
    told = {row[0].strip("`"): row[1] for row in rows(name)}
    assert public <= told.keys()
    assert all(told.values())


def test_every_requirement_of_the_kit_is_told_with_its_test():
    asked = list(requirements())
    assert len(asked) > 60
    assert [p.test for p in asked if f"`{p.test.rpartition('::')[2]}`" not in TEXT] == []


@pytest.mark.parametrize("name", ["strategy hooks", "engine methods"])
def test_what_has_to_be_written_is_what_is_abstract(name):
    contract = {"strategy hooks": StrategyBase, "engine methods": InferenceEngine}[name]
    assert {row[0].strip("`") for row in rows(name) if row[1] == "has to be written"} == contract.__abstractmethods__
    assert all(row[2] for row in rows(name))


def test_every_capability_is_told():
    assert [row[0].strip("`") for row in rows("capabilities")] == list(Capability)


@pytest.mark.parametrize(("number", "version"), [(API_VERSION - 1, "0.1.0"), (API_VERSION + 1, "9.0.0")])
def test_the_messages_about_numbers_are_the_codes(number, version):
    assert f"error: strategy 'rocket': {problem_with_api(number, distribution='rocket', version=version)}\n" in TEXT


def test_the_commands_are_there():
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    asked = set(re.findall(r"\blightrft ([a-z][a-z-]+)", "".join(re.findall(r"```bash.*?```|`lightrft [^`]*`", TEXT, re.DOTALL))))
    assert asked and asked <= known


def test_the_example_of_a_test_passes(tmp_path):
    [source] = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "def test_prompts_are_answered_in_order" in block]
    found: dict[str, object] = {}
    exec(source, found)
    found["test_prompts_are_answered_in_order"](tmp_path)
