"""The kit kills a sample of the mutants by the tests that are named for them. `make mutants` runs all of them."""

from __future__ import annotations

import pytest

from kit_mutants.mutant import mutant_registry
from kit_mutants.run import good_enough, run_mutants

SAMPLE = [
    "StaleWeights", "StopOnLength", "LogprobsShifted", "DoubleDivision", "OptionsDropped",
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_it_is_killed_by_the_test_that_is_named_for_it(name: str) -> None:
    mutant_registry()
    [row] = run_mutants([name])
    assert row.killed and row.by_name, f"{name} ({row.mutant.fault}): {row.mutant.test} said {row.message!r}; {row.others} failed, too"


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_within_the_time_out() -> None:
    [row] = run_mutants(["OneRankHangs"])
    assert row.by_name and "in report_memory" in row.message


@pytest.mark.slow
def test_several_at_a_time_are_told_in_the_order_of_their_names() -> None:
    names, told = ["StopOnLength", "StaleWeights", "NoRequestsIsAnError"], list[str]()
    rows = run_mutants(names, jobs=3, told=lambda row: told.append(row.mutant.name))
    assert told == names and all(row.by_name for row in rows)


def test_no_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="jobs=0; at least 1"):
        run_mutants(SAMPLE, jobs=0)


def test_a_table_without_rows_or_with_a_survivor_is_not_good_enough() -> None:
    assert not good_enough([])
