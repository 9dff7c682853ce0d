"""A requirement: one line of a contract, the code that asks for it, and the name of the test that a plugin sees fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lightrft.plugins.specs import Capability

if TYPE_CHECKING:
    from lightrft.testing.conformance.bench import StrategyBench

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[["StrategyBench"], None]

MARK = "_lightrft_requirement"


class NotAsked(Exception):
    """A check cannot ask here, and says why; it counts neither for nor against the plugin."""


class Refused(Exception):
    """A check found that what the plugin does not declare is refused, as it has to be."""


@dataclass(frozen=True)
class Requirement:
    """`method` of the contract requires `text`; `test` (`Class::name`) asks for it, where `capability` is declared or None."""

    kind: Literal["strategy", "engine"]
    method: str
    text: str
    test: str
    capability: Capability | None = None


@dataclass(frozen=True)
class StrategyCheck:
    """Runs on every rank of one world, all ranks together; raises AssertionError, in words for the author of the plugin.

    `needs` is the capability that it asks for; without it the strategy has to refuse. `after` names the plainer checks that it builds
    on: where one of them failed it is not asked, for it could fail for that reason alone, and is told as blocked by it.
    """

    name: str
    method: str
    run: Check
    needs: Capability | None
    after: tuple[str, ...]

    @property
    def text(self) -> str:
        return _text(self.run, self.name)

    @property
    def part(self) -> str:
        """The module that it is written in."""
        return self.run.__module__.rpartition(".")[2]


CHECKS: dict[str, StrategyCheck] = {}
"""Every check of a strategy, by name. `world.ORDER` is the order in which they run."""


def check(method: str, *, needs: Capability | None = None, after: tuple[str, ...] = ()) -> Callable[[Check], Check]:
    """Registers a check of `StrategyBase.method`; see `StrategyCheck`."""

    def register(run: Check) -> Check:
        name = run.__name__
        assert name not in CHECKS, f"two checks named {name}"
        CHECKS[name] = StrategyCheck(name, method, run, needs, after)
        return run

    return register


def requirement(method: str, *, needs: Capability | None = None) -> Callable[[F], F]:
    """Marks a test method as one that asks for a requirement of `method`; the docstring's first line, or the name, says which."""

    def mark(test: F) -> F:
        setattr(test, MARK, (method, needs))
        return test

    return mark


def requirements_of(kit: type, *, kind: Literal["strategy", "engine"], beyond: type = object) -> Iterator[Requirement]:
    """Those of a class of tests and of its bases that are not `beyond`'s, in the order of the classes."""
    for part in (part for part in kit.__mro__ if part not in beyond.__mro__):
        for name, test in vars(part).items():
            if name.startswith("test_"):
                method, needs = getattr(test, MARK)
                yield Requirement(kind, method, _text(test, name.removeprefix("test_")), f"{kit.__name__}::{name}", needs)


def _text(function: Callable[..., Any], name: str) -> str:
    written = (function.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return written or name.replace("_", " ")
