"""The plainest failure comes first, in one sentence; what could fail for its reason alone is blocked by it, and counted."""

from __future__ import annotations

import pytest

from kit_mutants.mutant import MUTANTS, mutant_registry
from kit_mutants.run import verdicts_of
from lightrft.testing.conformance.run import Verdict
from lightrft.testing.conformance.strategy import RESUMED
from lightrft.testing.conformance.world import ORDER


def found(name: str) -> tuple[list[Verdict], list[Verdict]]:
    """What failed of a mutant and what is blocked, in the order in which it is told."""
    mutant_registry()
    verdicts = verdicts_of(MUTANTS[name], "everything")
    return [v for v in verdicts if v.state == "failed"], [v for v in verdicts if v.state == "blocked"]


def test_a_check_comes_after_all_that_it_builds_on() -> None:
    names = list(ORDER)
    assert all(names.index(plainer) < names.index(check.name) for check in ORDER.values() for plainer in check.after)
    assert set(RESUMED) <= set(names)


def test_a_hook_that_raises_is_one_sentence_and_a_count() -> None:
    failed, blocked = found("PrepareRaises")
    assert [v.test for v in failed] == ["test_a_model_is_prepared_steps_and_is_exported"]
    assert failed[0].message.startswith("rank 0 of 1: _prepare_trainable raised TypeError: unexpected keyword 'fused_step' (plain.py:")
    assert len(blocked) > 40
    assert {v.message for v in blocked} == {"blocked by test_a_model_is_prepared_steps_and_is_exported"}


@pytest.mark.parametrize("name", ["DoesNotStart", "GenerateRaises", "SyncRaises"])
def test_an_engine_that_does_not_work_at_all_is_one_sentence_and_a_count(name: str) -> None:
    failed, blocked = found(name)
    assert [v.test for v in failed] == [MUTANTS[name].test], [v.message for v in failed]
    assert "\n" not in failed[0].message
    assert len(blocked) > 20
    assert {v.message for v in blocked} == {f"blocked by {MUTANTS[name].test}"}


def test_names_of_a_wrapper_are_told_once_and_no_key_error() -> None:
    failed, blocked = found("NamesOfTheWrapper")
    assert failed[0].test == "test_parameters_leave_under_the_names_of_the_model"
    assert not [v for v in failed if "KeyError" in v.message]
    assert {v.message for v in blocked} == {"blocked by test_parameters_leave_under_the_names_of_the_model"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MeanOfMeans", "LastSyncForgotten", "ClipsBeforeTheSum"])
def test_a_wrong_sum_over_ranks_is_told_by_hand_before_anything_that_trains(name: str) -> None:
    failed, blocked = found(name)
    assert failed[0].test == MUTANTS[name].test, [v.test for v in failed]
    assert MUTANTS[name].words in failed[0].message
    assert "test_a_run_is_resumed_on_another_number_of_ranks" in {v.test for v in blocked}
