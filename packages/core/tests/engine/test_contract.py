"""Does the reference engine itself keep every promise of an engine?"""

from __future__ import annotations

from lightrft.testing.engine_contract import EngineContract


class TestQwen3(EngineContract):
    engine_name = "hf"


class TestQwen2Tied(EngineContract):
    engine_name = "hf"
    family = "qwen2"
    tie = True


class TestLlama(EngineContract):
    engine_name = "hf"
    family = "llama"
