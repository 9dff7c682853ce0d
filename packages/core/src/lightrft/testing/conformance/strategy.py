"""Every requirement of `StrategyBase` as a test. A class to inherit: name the strategy.

    class TestMine(StrategyConformance):
        strategy_name = "mine"

All checks of one number of ranks run in one spawned world; each has a test of its own, which tells what its check found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lightrft.errors import LightRFTError
from lightrft.plugins.specs import Capability
from lightrft.testing.conformance import saving
from lightrft.testing.conformance.base import Conformance, KitError
from lightrft.testing.conformance.bench import MakeRegistry, StrategyBench, Subject, Tensors
from lightrft.testing.conformance.plain import STEPS
from lightrft.testing.conformance.requirement import MARK, StrategyCheck, requirement
from lightrft.testing.conformance.world import END, KIT, ORDER, Outcome, ask
from lightrft.testing.spmd import run_spmd
from lightrft.testing.workload import largest_difference

Record = Callable[[str, object], None]

RESUMED = (
    "a_resumed_run_is_bitwise_the_same",
    "micro_batches_do_not_change_the_update",
    "a_clipped_update_is_that_of_one_process",
    "a_schedule_reaches_the_optimizer",
)
"""What a run that is resumed on other ranks builds on."""

OTHER_RANKS = {1: 2, 2: 1, 4: 2}
"""On how many ranks a run is resumed that was saved on so many."""


class World:
    """The outcomes of the checks of one strategy on so many ranks that were selected; asked when the first is wanted.

    Where the plainest check failed with fewer ranks (`smaller`), nothing is asked with more.
    """

    def __init__(self, subject: Subject, ranks: int, *, timeout_s: float, selected: tuple[str, ...], smaller: World | None) -> None:
        self.subject, self.ranks = subject, ranks
        self._timeout_s, self._selected, self._smaller = timeout_s, selected, smaller
        self._outcomes: dict[str, Outcome] | None = None

    def outcome(self, check: str) -> Outcome:
        if self._outcomes is None:
            if root := self._smaller.blocked_by(STEPS) if self._smaller else "":
                self._outcomes = dict.fromkeys((*self._selected, KIT, END), Outcome("blocked", root))
            else:
                self._outcomes = ask(self.subject, self.ranks, self._selected, timeout_s=self._timeout_s)
        return self._outcomes[check]

    def blocked_by(self, checks: tuple[str, ...]) -> str:
        """Of the first of these that failed its name, of one that is blocked the name of what blocks it; nothing where all held."""
        for name in (name for name in checks if name in self._selected):
            outcome = self.outcome(name)
            if outcome.kind in ("failed", "blocked"):
                return f"{name}[{_named(self.ranks)}]" if outcome.kind == "failed" else outcome.text
        return ""


class StrategyChecks(Conformance, kit=True):
    """The checks of `world.ORDER` as tests, in that order."""

    kind = "strategy"
    WIRING = frozenset({"strategy_name", "ranks", "settings", "registry", "timeout_s"})
    strategy_name: ClassVar[str]
    ranks: ClassVar[tuple[int, ...]] = (1, 2)
    """World sizes; one that does not declare `multi_rank` is asked on one rank, and has to refuse two."""
    settings: ClassVar[Mapping[str, Any]] = {}
    timeout_s: ClassVar[float] = 60.0
    _world: ClassVar[World]
    """The last one that was asked; the next has more ranks."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "world" in metafunc.fixturenames:
            if not type(self).ranks or any(type(n) is not int or n < 1 for n in type(self).ranks):
                raise KitError(
                    f"{type(self).__name__} sets ranks = {type(self).ranks!r}: nothing would be tested. Give world sizes, (1, 2)"
                )
            asked = type(self).ranks if Capability.MULTI_RANK in type(self).spec().capabilities else (1,)
            metafunc.parametrize("world", asked, indirect=True, scope="class", ids=list(map(_named, asked)))

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls, request: pytest.FixtureRequest) -> World:
        wanted = {item.originalname for item in request.session.items if item.cls is cls}  # type: ignore[attr-defined]  # functions
        selected = tuple(name for name in ORDER if f"test_{name}" in wanted)
        made = World(cls._subject(), request.param, timeout_s=cls.timeout_s, selected=selected, smaller=vars(cls).get("_world"))
        cls._world = made
        return made

    @classmethod
    def _subject(cls) -> Subject:
        make: MakeRegistry = cls.registry
        return Subject(cls.plugin_name(), make, dict(cls.settings))

    @requirement("get_strategy", needs=Capability.MULTI_RANK)
    def test_more_than_one_rank_is_run_or_refused(self) -> None:
        """`multi_rank`: declared, two ranks start and reach each other; not declared, they are refused before anything starts"""
        subject, declared = self._subject(), Capability.MULTI_RANK in type(self).spec().capabilities
        for rank, said in enumerate(run_spmd(_start_on_two, 2, subject, timeout_s=self.timeout_s)):
            if declared:
                assert said == "2 ranks", f"rank {rank} of 2: {said}"
            else:
                assert "multi_rank" in said, f"2 ranks were silently accepted without 'multi_rank' declared (rank {rank}: {said})"


def _named(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def _test_of(check: StrategyCheck) -> Callable[..., None]:
    def test(self: StrategyChecks, world: World, record_property: Record) -> None:
        _tell(world.outcome(check.name), record_property)

    test.__name__ = f"test_{check.name}"
    test.__qualname__ = f"StrategyChecks.{test.__name__}"
    test.__doc__ = check.text
    setattr(test, MARK, (check.method, check.needs))
    return test


for _check in ORDER.values():
    setattr(StrategyChecks, f"test_{_check.name}", _test_of(_check))


class StrategyConformance(StrategyChecks, kit=True):
    """Set `strategy_name`; where needed `ranks`, `settings` (of the configuration) and `timeout_s` (of one check).

    Tests run from the plain to what builds on it; one that could fail for a plainer one's reason alone is skipped as blocked by that.
    """

    @requirement("load_ckpt", needs=Capability.MULTI_RANK)
    def test_a_run_is_resumed_on_another_number_of_ranks(self, world: World, tmp_path: Path, record_property: Record) -> None:
        """What is loaded is bitwise what was saved; two steps later it is near, for sums are in another order"""
        if Capability.MULTI_RANK not in type(self).spec().capabilities:
            pytest.skip("this strategy runs on one rank")
        if root := world.blocked_by(RESUMED):
            _blocked(root, record_property)
        folder, here, there = tmp_path / "saved", world.ranks, OTHER_RANKS.get(world.ranks, 1)
        expected = run_spmd(_save, here, world.subject, str(folder), timeout_s=4 * self.timeout_s)[0]
        for rank, found in enumerate(run_spmd(_resume, there, world.subject, str(folder), timeout_s=4 * self.timeout_s)):
            far = {when: largest_difference(_part(found, when), _part(expected, when)) for when in ("saved", "later")}
            who = f"saved on {here} ranks and resumed on {there} (rank {rank})"
            assert far["saved"] == 0, f"{who}: loaded parameters differ by {far['saved']:.1e} from those saved"
            assert far["later"] < saving.NEAR, (
                f"{who}: two steps later parameters differ by {far['later']:.1e} (allowed {saving.NEAR:.0e}): the optimizer's state was "
                "not dealt out again as it was"
            )

    @requirement("spec")
    def test_nothing_replaced_the_kit_on_the_ranks(self, world: World, record_property: Record) -> None:
        """Where the plugin is loaded, it changed neither the kit nor the public side of the contracts"""
        _tell(world.outcome(KIT), record_property)

    @requirement("shutdown")
    def test_it_ends_twice_over(self, world: World, record_property: Record) -> None:
        """After `shutdown` no process group is left, and a second call does no harm"""
        _tell(world.outcome(END), record_property)


def _tell(outcome: Outcome, record: Record) -> None:
    __tracebackhide__ = True
    record("seconds", outcome.seconds)
    if outcome.kind == "refused":
        record("refused", outcome.text)
    if outcome.kind == "blocked":
        _blocked(outcome.text, record)
    if outcome.kind == "not asked":
        pytest.skip(outcome.text)
    if outcome.kind == "failed":
        pytest.fail(outcome.text, pytrace=False)


def _blocked(root: str, record: Record) -> None:
    __tracebackhide__ = True
    record("blocked", f"test_{root}")
    pytest.skip(f"blocked by test_{root}")


def _start_on_two(subject: Subject) -> str:
    try:
        bench = StrategyBench(subject, Path(), {})
        ranks = bench.strategy.all_reduce(1, "sum")
    except LightRFTError as error:
        return str(error)
    bench.strategy.shutdown()
    return f"{ranks} ranks"


def _save(subject: Subject, folder: str) -> Tensors:
    return _in_world(subject, folder, saving.save_for_other_ranks)


def _resume(subject: Subject, folder: str) -> Tensors:
    return _in_world(subject, folder, saving.resume_on_other_ranks)


def _in_world(subject: Subject, folder: str, work: Callable[[StrategyBench, Path], Tensors]) -> Tensors:
    bench = StrategyBench(subject, Path(folder).parent, {})
    found = work(bench, Path(folder))
    bench.strategy.shutdown()
    return found


def _part(found: Tensors, when: str) -> Tensors:
    return {name: tensor for name, tensor in found.items() if name.startswith(f"{when}/")}
