"""Every requirement of an engine, asked of `continuous`."""

from __future__ import annotations

from lightrft.testing.conformance import EngineConformance


class TestEngine(EngineConformance):
    engine_name = "continuous"
