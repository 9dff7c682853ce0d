"""Engines that read images pass the kit. The fake one, and a small one over transformers that is here for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText

from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.engine.hf import HFEngine
from lightrft.plugins.builtin import lightrft_plugins
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.testing.conformance.engine_images import Images
from lightrft.testing.engine_bench import TransformersJudge
from lightrft.testing.fake_engine import FakeJudge
from lightrft.testing.fake_strategy import FAKE_ENGINE, fake_registry
from lightrft.types import Completion, EngineStatus, Request, RequestOutput, SamplingParams

pytest.importorskip("PIL", reason="images are Pillow's")


class PicturedHFEngine(HFEngine):
    """The reference engine; it answers a batch with images one prompt at a time, greedily."""

    def __init__(self, setup: EngineSetup) -> None:
        if not hasattr(AutoConfig.from_pretrained(setup.model_path), "vision_config"):
            super().__init__(setup)
            return
        InferenceEngine.__init__(self, setup)  # `hf` itself loads text models only
        factory: Any = AutoModelForImageTextToText
        self._model = factory.from_pretrained(setup.model_path, dtype=setup.dtype).eval().requires_grad_(False)
        self._version, self._weights_held, self._status = 0, True, EngineStatus.AWAKE

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[RequestOutput]:
        if not any(r.images for r in requests):
            return super().generate(requests, sampling)
        judge, outputs = TransformersJudge(), []
        for r in requests:
            tokens = judge.greedy(self._model, r.prompt_token_ids, max_new_tokens=sampling.max_new_tokens, images=r.images)
            completion = Completion(token_ids=tokens, finish_reason="length", weight_version=self._version)
            outputs.append(RequestOutput(id=r.id, prompt_token_ids=r.prompt_token_ids, completions=(completion,)))
        return outputs


def registry() -> Registry:
    [hf] = [spec for spec in lightrft_plugins() if (spec.kind, spec.name) == ("engine", "hf")]
    assert isinstance(hf, EngineSpec)
    more = frozenset({Capability.MULTIMODAL})
    pictured = replace(hf, name="pictured", target=f"{__name__}:PicturedHFEngine", capabilities=hf.capabilities | more)
    return fake_registry(pictured, replace(FAKE_ENGINE, name="pictured-fake", capabilities=FAKE_ENGINE.capabilities | more))


class TestFakeThatReadsImages(Images):
    engine_name = "pictured-fake"
    registry = registry
    judge = FakeJudge()


class TestHfThatReadsImages(Images):
    engine_name = "pictured"
    registry = registry
