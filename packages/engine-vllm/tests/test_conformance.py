"""vLLM meets every requirement of an engine, with tokens and log-probs of transformers, on each architecture."""

from __future__ import annotations

from lightrft.testing.conformance import EngineConformance


class TestQwen3(EngineConformance):
    engine_name = "vllm"


class TestQwen2Tied(EngineConformance):
    engine_name = "vllm"
    family = "qwen2"
    tie = True


class TestLlama(EngineConformance):
    engine_name = "vllm"
    family = "llama"
