"""Test classes to inherit: the requirements of the contracts, asked of a plugin that `tests/test_conformance.py` names and no more.

    from lightrft.testing.conformance import EngineConformance, StrategyConformance

    class TestStrategy(StrategyConformance):
        strategy_name = "mine"

    class TestEngine(EngineConformance):
        engine_name = "mine"

What its spec declares is tested; what it does not declare has to be refused. Needs pytest: `pip install 'lightrft[testing]'`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

PARTS = (
    "kit",
    "cache",
    "draws",
    "ends",
    "images",
    "later",
    "limits",
    "load",
    "options",
    "plain",
    "ranks",
    "seeds",
    "states",
    "stepping",
    "syncs",
)
pytest.register_assert_rewrite(*(f"lightrft.testing.conformance.engine_{part}" for part in PARTS))

from lightrft.testing.conformance.base import Conformance, KitError  # noqa: E402  # after the rewriting of their assertions is asked for
from lightrft.testing.conformance.engine import EngineConformance  # noqa: E402
from lightrft.testing.conformance.integrity import remember  # noqa: E402
from lightrft.testing.conformance.requirement import Requirement, requirements_of  # noqa: E402
from lightrft.testing.conformance.strategy import StrategyConformance  # noqa: E402

__all__ = ["EngineConformance", "KitError", "Requirement", "StrategyConformance", "requirements"]


def requirements() -> Iterator[Requirement]:
    """Every requirement that the kit asks for: contract method, requirement, test, and the capability that it belongs to."""
    yield from requirements_of(Conformance, kind="strategy")
    yield from requirements_of(StrategyConformance, kind="strategy", beyond=Conformance)
    yield from requirements_of(EngineConformance, kind="engine", beyond=Conformance)


remember()
