"""SGLang meets every requirement of an engine, with tokens and log-probs of transformers, on each architecture."""

from __future__ import annotations

import pytest

from lightrft.testing.conformance import EngineConformance


class TestQwen3(EngineConformance):
    engine_name = "sglang"


@pytest.mark.long  # vLLM is asked about a tied model daily
class TestQwen2Tied(EngineConformance):
    engine_name = "sglang"
    family = "qwen2"
    tie = True


@pytest.mark.long
class TestLlama(EngineConformance):
    engine_name = "sglang"
    family = "llama"
