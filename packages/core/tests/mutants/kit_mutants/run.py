"""Runs mutants through the kit of their kind: a row for each, with the test that killed it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from kit_mutants.mutant import MUTANTS, Mutant, mutant_registry
from lightrft.testing.conformance import requirements
from lightrft.testing.conformance.plain import STEPS
from lightrft.testing.conformance.requirement import CHECKS
from lightrft.testing.conformance.run import Verdict, run_kit
from lightrft.testing.conformance.strategy import RESUMED

Asked = Literal["named", "usual", "everything"]
"""Which tests: the one that a mutant names and those it builds on; all but those of `SLOW`; all."""

TIMEOUT_S, HANGS_S = 60.0, 20.0
"""Of one test; of a mutant that hangs, which costs all of it."""

FRACTION_BY_NAME = 0.95

SLOW = (
    "test_more_than_one_rank_is_run_or_refused",
    "test_a_run_is_resumed_on_another_number_of_ranks",
    "test_two_ranks_share_one_engine",
)
"""Tests that spawn ranks of their own: asked only of mutants that they are named for."""

FIRST_OF_ENGINES = "test_it_starts_awake_and_answers"

SOURCE = """
from lightrft.testing.conformance import EngineConformance, StrategyConformance
from lightrft.testing.fake_engine import FakeJudge
from kit_mutants.mutant import MUTANTS, mutant_registry

mutant_registry()
NAMES = {names!r}
for _m in (MUTANTS[name] for name in NAMES):
    if _m.kind == "engine":
        _wiring = {{"engine_name": _m.name, "registry": mutant_registry, "timeout_s": {timeout_s!r}}}
        _wiring |= {{"judge": FakeJudge()}} if _m.base in ("fake engine", "optioned") else {{}}
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


def run_mutants(
    names: Sequence[str] = (), *, jobs: int = 1, asked: Asked = "usual", told: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Of the named mutants, or of all; `jobs` of them at a time, each in a process of its own where there are several.

    Rows, and what is `told`, are in the order of the names, whatever ends first.

    Raises:
        ValueError: `jobs` is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}; at least 1 mutant has to run at a time")
    mutant_registry()
    chosen, rows = list(names or MUTANTS), list[Row]()
    if jobs == 1:
        for name in chosen:
            rows.append(run_mutant(name, asked))
            told(rows[-1])
        return rows
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        for row in pool.map(partial(run_mutant, asked=asked), chosen):
            rows.append(row)
            told(row)
    return rows


def run_mutant(name: str, asked: Asked = "usual") -> Row:
    """What the kit says of one."""
    mutant_registry()
    return _row(MUTANTS[name], verdicts_of(MUTANTS[name], asked))


def _one_thread() -> None:
    """For this process and the ranks that it spawns: several jobs with all cores each would wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def good_enough(rows: Sequence[Row]) -> bool:
    """All are killed, and 95 % by the test that is named, in its words."""
    return bool(rows) and all(row.killed for row in rows) and sum(row.by_name for row in rows) >= FRACTION_BY_NAME * len(rows)


def verdicts_of(mutant: Mutant, asked: Asked = "usual") -> list[Verdict]:
    """What the kit says, in the order in which it says it. Of `SLOW` a mutant is asked what it is named for, with `everything` all."""
    left_out = [] if asked == "everything" else [name for name in SLOW if name != mutant.test]
    if asked == "named":
        kept = {mutant.test, *(f"test_{name}" for name in _builds_on(mutant.test.removeprefix("test_"))), FIRST_OF_ENGINES}
        left_out = [name for name in tests_of(mutant.kind) if name not in kept]
    source = SOURCE.format(names=[mutant.name], timeout_s=HANGS_S if "hangs" in mutant.words + mutant.fault else TIMEOUT_S)
    verdicts, problems = run_kit(source, leave_out=[f"Test{mutant.name}::{name}" for name in left_out])
    assert not problems, problems
    return verdicts


def tests_of(kind: str) -> list[str]:
    """The names of all tests of a kit."""
    return [name for r in requirements() if r.kind == kind or "::" not in r.test for name in [r.test.rpartition("::")[2]]]


def _builds_on(check: str) -> set[str]:
    plainer = CHECKS[check].after if check in CHECKS else RESUMED if f"test_{check}" == SLOW[1] else STEPS
    return set(plainer).union(*(_builds_on(name) for name in plainer))


def _row(mutant: Mutant, verdicts: Sequence[Verdict]) -> Row:
    failed = [v for v in verdicts if v.state == "failed"]
    named = [v for v in failed if v.test == mutant.test]
    telling = next((v for v in named if mutant.words in v.message), named[0] if named else None)
    others = tuple(sorted({v.test for v in failed} - {mutant.test}))
    message = telling.message if telling is not None else (failed[0].message if failed else "")
    by_name = telling is not None and mutant.words in telling.message
    return Row(mutant, bool(failed), by_name, message, others, sum(v.seconds for v in verdicts))
