"""Every requirement of a strategy, asked of `ddp`, on one and on two ranks."""

from __future__ import annotations

from lightrft.testing.conformance import StrategyConformance


class TestStrategy(StrategyConformance):
    strategy_name = "ddp"
