"""Which mutants does the kit kill, and by which test? Runs every one of them through the kit of its kind; a row for each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from kit_mutants.mutant import MUTANTS, Mutant, mutant_registry
from lightrft.testing.conformance.run import Verdict, run_kit

TIMEOUT_S = 20.0
SHARE_BY_NAME = 0.95

SLOW = (
    "test_more_than_one_rank_is_run_or_refused",
    "test_a_run_is_resumed_on_another_number_of_ranks",
    "test_two_ranks_share_one_engine",
)
"""Tests that spawn ranks of their own: asked only of mutants that they are named for."""

SOURCE = """
from lightrft.testing.conformance import EngineConformance, StrategyConformance
from lightrft.testing.fake_engine import FakeJudge
from kit_mutants.mutant import MUTANTS, mutant_registry

mutant_registry()
NAMES = {names!r}
for _m in (MUTANTS[name] for name in NAMES):
    if _m.kind == "engine":
        _wiring = {{"engine_name": _m.name, "registry": mutant_registry, "timeout_s": {timeout_s!r}}}
        _wiring |= {{"judge": FakeJudge()}} if _m.base == "fake engine" else {{}}
        globals()["Test" + _m.name] = type("Test" + _m.name, (EngineConformance,), {{"__module__": __name__, **_wiring}})
    else:
        _wiring = {{"strategy_name": _m.name, "registry": mutant_registry, "ranks": (_m.ranks,), "timeout_s": {timeout_s!r}}}
        globals()["Test" + _m.name] = type("Test" + _m.name, (StrategyConformance,), {{"__module__": __name__, **_wiring}})
"""


@dataclass(frozen=True)
class Row:
    """What came of a mutant: `killed` by any test, `by_name` by the one that it names, in the words that it names."""

    mutant: Mutant
    killed: bool
    by_name: bool
    message: str
    others: tuple[str, ...]
    seconds: float


def run_mutants(names: Sequence[str] = (), *, jobs: int = 1, told: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Of the named mutants, or of all; `jobs` of them at a time, each in a process of its own where there are several.

    Rows, and what is `told`, are in the order of the names, whatever ends first.

    Raises:
        ValueError: `jobs` is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}; at least 1 mutant has to run at a time")
    mutant_registry()
    asked, rows = list(names or MUTANTS), list[Row]()
    if jobs == 1:
        for name in asked:
            rows.append(run_mutant(name))
            told(rows[-1])
        return rows
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        for row in pool.map(run_mutant, asked):
            rows.append(row)
            told(row)
    return rows


def run_mutant(name: str) -> Row:
    """What the kit says of one."""
    mutant_registry()
    return _row(MUTANTS[name], _verdicts(MUTANTS[name]))


def _one_thread() -> None:
    """For this process and the ranks that it spawns: several jobs with all cores each would wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def good_enough(rows: Sequence[Row]) -> bool:
    """All are killed, and 95 % by the test that is named, in its words."""
    return bool(rows) and all(row.killed for row in rows) and sum(row.by_name for row in rows) >= SHARE_BY_NAME * len(rows)


def _verdicts(mutant: Mutant) -> list[Verdict]:
    left_out = [f"Test{mutant.name}::{name}" for name in SLOW if name != mutant.test]
    verdicts, problems = run_kit(SOURCE.format(names=[mutant.name], timeout_s=TIMEOUT_S), leave_out=left_out)
    assert not problems, problems
    return verdicts


def _row(mutant: Mutant, verdicts: Sequence[Verdict]) -> Row:
    failed = [v for v in verdicts if v.state == "failed"]
    named = [v for v in failed if v.test == mutant.test]
    telling = next((v for v in named if mutant.words in v.message), named[0] if named else None)
    others = tuple(sorted({v.test for v in failed} - {mutant.test}))
    message = telling.message if telling is not None else (failed[0].message if failed else "")
    by_name = telling is not None and mutant.words in telling.message
    return Row(mutant, bool(failed), by_name, message, others, sum(v.seconds for v in verdicts))
