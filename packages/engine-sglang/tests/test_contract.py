"""Does SGLang keep every promise of an engine, with tokens and log-probs of transformers, on each architecture?"""

from __future__ import annotations

from lightrft.testing.engine_contract import EngineContract


class TestQwen3(EngineContract):
    engine_name = "sglang"


class TestQwen2Tied(EngineContract):
    engine_name = "sglang"
    family = "qwen2"
    tie = True


class TestLlama(EngineContract):
    engine_name = "sglang"
    family = "llama"
