"""Core's own strategies and engines meet every requirement of their contracts."""

from __future__ import annotations

import pytest

from lightrft.testing.conformance import EngineConformance, StrategyConformance
from lightrft.testing.conformance.engine_options import Options
from lightrft.testing.fake_engine import FakeJudge
from lightrft.testing.fake_options import optioned_registry
from lightrft.testing.fake_strategy import fake_registry


class TestSingle(StrategyConformance):
    strategy_name = "single"


class TestFakeStrategy(StrategyConformance):
    strategy_name = "fake"
    registry = fake_registry


class TestSharded(StrategyConformance):
    strategy_name = "sharded"
    registry = fake_registry
    ranks = (2,)


@pytest.mark.slow
class TestShardedOnFour(StrategyConformance):
    strategy_name = "sharded"
    registry = fake_registry
    ranks = (4,)


class TestHf(EngineConformance):
    engine_name = "hf"


class TestHfQwen2Tied(EngineConformance):
    engine_name = "hf"
    family = "qwen2"
    tie = True


class TestHfLlama(EngineConformance):
    engine_name = "hf"
    family = "llama"


class TestFakeEngine(EngineConformance):
    engine_name = "fake"
    registry = fake_registry
    judge = FakeJudge()


class TestOptionedEngine(Options):
    engine_name = "optioned"
    registry = optioned_registry
    judge = FakeJudge()
