"""The strategy `deepspeed` meets every requirement of its contract, on one and on two ranks."""

from __future__ import annotations

from lightrft.testing.conformance import StrategyConformance


class TestStrategy(StrategyConformance):
    strategy_name = "deepspeed"
