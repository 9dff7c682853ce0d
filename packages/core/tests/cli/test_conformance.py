"""`lightrft conformance` gives a verdict on an installed plugin, and none where it would be worth nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit_mutants.mutant import MUTANTS, mutant_registry
from lightrft.cli import conformance
from lightrft.cli.conformance import run_conformance
from lightrft.errors import PluginBrokenError, PluginNotInstalledError, UserError
from lightrft.testing.conformance import EngineConformance, KitError
from lightrft.testing.conformance.run import run_kit

PLUGIN = """
from lightrft.plugins import Capability, EngineSpec, hookimpl

@hookimpl
def lightrft_plugins():
    return [EngineSpec(name="planted", target="planted_engine:Planted", capabilities=frozenset({capabilities}))]
"""
ENGINE = """
from lightrft.engine.hf import HFEngine

class Planted(HFEngine):
    pass
"""
ALL = "{Capability.LOGPROBS, Capability.SEED, Capability.SLEEP_1, Capability.SLEEP_2, Capability.MIN_P, Capability.MIN_NEW_TOKENS}"


class Plant:
    def __init__(self, site: Path) -> None:
        self.site = site

    def __call__(self, engine: str = "", *, capabilities: str = ALL) -> None:
        info = self.site / "planted-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[lightrft.plugins]\nplanted = planted_plugin\n")
        (self.site / "planted_plugin.py").write_text(PLUGIN.replace("{capabilities}", capabilities))
        (self.site / "planted_engine.py").write_text(ENGINE + engine)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """plant(source) installs an engine `planted`: hf, with these lines beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Plant(tmp_path)
    for name in ("planted_plugin", "planted_engine"):
        sys.modules.pop(name, None)


def test_a_good_engine_meets_its_requirements_and_a_row_says_so_for_each() -> None:
    report = run_conformance("engine", "hf", ranks=None)
    assert report["ok"] and report["counts"]["failed"] == 0 and report["counts"]["passed"] > 30
    refused = [row["name"] for row in report["requirements"] if row["state"] == "refused"]
    assert sorted(refused) == [
        "test_a_completion_depends_on_nothing_else_in_its_batch",
        "test_an_option_of_another_type_is_refused",
        "test_an_option_that_lightrft_sets_is_refused_with_the_setting_to_use",
        "test_an_unknown_option_is_refused_with_the_nearest_name",
        "test_it_keeps_to_its_fraction_of_the_devices_memory",
        "test_what_is_not_declared_is_refused[deterministic]",
        "test_what_is_not_declared_is_refused[mem_util]",
        "test_what_its_library_was_built_with_is_told",
    ]
    assert all(row["method"] and row["text"] for row in report["requirements"])
    assert report["plugin"]["provider"].startswith("lightrft ") and "torch" in report["environment"]


def test_a_requirement_that_is_not_met_is_told_in_the_words_of_the_kit(plant: Plant) -> None:
    plant("    def update_weights(self, buckets, *, version):\n        super().update_weights(buckets, version=version - 1)\n")
    report = run_conformance("engine", "planted", ranks=None)
    assert not report["ok"]
    messages = [row["message"] for row in report["requirements"] if row["state"] == "failed"]
    assert any("completions carry the weight version" in message for message in messages)


def test_a_plugin_that_declares_nothing_gets_no_verdict(plant: Plant) -> None:
    plant(capabilities="set()")
    with pytest.raises(UserError, match="engine 'planted' declares no capability"):
        run_conformance("engine", "planted", ranks=None)


def test_a_plugin_that_changes_the_kit_gets_no_verdict(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightrft.testing import judge

    monkeypatch.setattr(judge, "greedy_tokens", judge.greedy_tokens)  # put back afterwards
    plant("\nimport lightrft.testing.judge\nlightrft.testing.judge.greedy_tokens = lambda *_, **__: []\n")
    with pytest.raises(UserError, match=r"replaced while the kit ran: lightrft\.testing\.judge\.greedy_tokens"):
        run_conformance("engine", "planted", ranks=None)


@pytest.mark.parametrize(
    ("kind", "name", "ranks", "words"),
    [
        ("strategy", "single", 2, "does not declare 'multi_rank'"),
        ("engine", "hf", 2, "an engine is tested alone"),
    ],
)
def test_ranks_that_a_plugin_does_not_have_are_refused(kind: str, name: str, ranks: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run_conformance(kind, name, ranks=ranks)


def test_what_is_not_installed_and_a_missing_pytest_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginNotInstalledError, match="nosuch"):
        run_conformance("engine", "nosuch", ranks=None)
    monkeypatch.setattr(conformance, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lightrft\[testing\]'"):
        run_conformance("engine", "hf", ranks=None)


class Cheat:
    def test_no_requests_give_no_outputs(self) -> None:
        """Passes."""


def test_a_plugin_whose_target_cannot_be_had_gets_one_sentence(plant: Plant) -> None:
    plant("\nraise OSError('no library')\n")
    with pytest.raises(PluginBrokenError, match="planted_engine:Planted: OSError: no library"):
        run_conformance("engine", "planted", ranks=None)


def test_an_engine_that_hangs_is_named_and_asked_no_more(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineConformance, "timeout_s", 10.0)
    plant("    def generate(self, requests, sampling):\n        import time\n        time.sleep(1e6)\n")
    report = run_conformance("engine", "planted", ranks=None)
    [message] = [row["message"] for row in report["requirements"] if row["state"] == "failed"]
    assert message.startswith("engine 'planted' hangs: it did not come back within 10 s; it is in ") and "in generate" in message
    assert sum(row["state"] == "blocked" for row in report["requirements"]) > 40 and report["seconds"] < 90


@pytest.mark.parametrize("ranks", [(), (0,), (True, 2)])
def test_a_class_without_world_sizes_tests_nothing_and_is_refused(ranks: tuple[int, ...]) -> None:
    kit = "from lightrft.testing.conformance import StrategyConformance\n"
    verdicts, problems = run_kit(f"{kit}class TestNone(StrategyConformance):\n    strategy_name, ranks = 'single', {ranks!r}\n")
    assert verdicts == [] and any("nothing would be tested. Give world sizes" in problem for problem in problems)


def test_a_class_that_overrides_a_requirement_or_names_nothing_is_no_test() -> None:
    with pytest.raises(KitError, match="overrides test_no_requests_give_no_outputs of the kit"):
        type("TestMine", (EngineConformance,), {"engine_name": "hf", "test_no_requests_give_no_outputs": lambda self: None})
    with pytest.raises(KitError, match="overrides test_no_requests_give_no_outputs of the kit"):
        type("TestMine", (Cheat, EngineConformance), {"engine_name": "hf"})
    with pytest.raises(KitError, match="names no plugin: nothing would be tested"):
        type("TestMine", (EngineConformance,), {}).spec()


def test_every_mutant_names_a_test_that_there_is() -> None:
    from lightrft.testing.conformance import requirements

    mutant_registry()
    known = {(p.kind, p.test.rpartition("::")[2]) for p in requirements()} | {
        ("engine", p.test.rpartition("::")[2]) for p in requirements() if p.test.startswith("Conformance::")
    }
    assert len(MUTANTS) >= 60
    assert [m.name for m in MUTANTS.values() if (m.kind, m.test) not in known] == []
    assert all(m.words and m.fault for m in MUTANTS.values())
