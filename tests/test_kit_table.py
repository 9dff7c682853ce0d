"""The page of the kit has every requirement with its test, and every mutant beside the test that has to kill it."""

from __future__ import annotations

import kit_table
from kit_mutants.mutant import MUTANTS, mutant_registry
from lightrft.testing.conformance import requirements

TEXT = kit_table.PAGE.read_text(encoding="utf-8")

WITHOUT = {
    "test_nothing_replaced_the_kit": "ReplacesTheKit is planted for the same question where the plugin is loaded",
    "test_what_is_not_declared_is_refused": "core refuses, by what the spec declares: an engine has no part in it",
}
"""Requirements that no mutant is named for, and why."""


def test_its_tables_are_up_to_date() -> None:
    assert kit_table.brought_up_to_date(TEXT) == TEXT, "run `make docs`"


def test_every_requirement_has_a_mutant() -> None:
    mutant_registry()
    tests = {requirement.test.rpartition("::")[2] for requirement in requirements()}
    named = {mutant.test for mutant in MUTANTS.values()}
    assert named <= tests, "a mutant names a test that the kit does not have"
    assert tests - named <= set(WITHOUT), "plant a fault for each, or say why there is none"
    assert all(f"`{name}`" in TEXT for name in MUTANTS)
