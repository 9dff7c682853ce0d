"""Every requirement of a strategy and of an engine. The tests are inherited; the specs say which are asked for."""

from __future__ import annotations

import pytest

from lightrft.testing.conformance import EngineConformance, StrategyConformance


class TestStrategy(StrategyConformance):
    strategy_name = "acme"


@pytest.mark.slow
class TestStrategyOnFourRanks(StrategyConformance):
    strategy_name = "acme"
    ranks = (4,)


class TestEngine(EngineConformance):
    engine_name = "acme"
