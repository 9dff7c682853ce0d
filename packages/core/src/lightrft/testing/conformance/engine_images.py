"""Requirements of images: read, each in its place, and by the current weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lightrft.plugins.specs import Capability
from lightrft.testing.conformance.engine_kit import EngineKit, Record
from lightrft.testing.conformance.requirement import requirement
from lightrft.testing.engine_bench import IMAGE_ANSWER, EngineBench, ImageBench
from lightrft.types import Request

_passed: set[type] = set()
"""Engines, in this process. To start one for images takes as long as all other questions."""


class Images(EngineKit, kit=True):
    """Prompts with images."""

    @requirement("generate", needs=Capability.MULTIMODAL)
    def test_images_are_read_in_their_place(self, bench: EngineBench, tmp_path: Path, record_property: Record) -> None:
        """Prompts of text, of an image and of two, in one batch: the answers are the model's own, before and after a sync"""
        if not self._declared(bench, Capability.MULTIMODAL, record_property):
            return
        engine = bench.registry.load("engine", bench.spec.name)
        if (self.family, self.tie) != (EngineKit.family, EngineKit.tie) and engine in _passed:
            pytest.skip("asked before in this process: the image-text model is the same beside every family")
        bench.close()  # one engine at a time
        pictured = ImageBench(self.plugin_name(), tmp_path, judge=self.judge, registry=bench.registry)
        try:
            pictured.restart()
            requests = pictured.requests()
            self._answers_are_the_models(pictured, requests, "with the folder's weights")
            pictured.sync(pictured.models[1])
            self._answers_are_the_models(pictured, requests, "after a sync")
        finally:
            pictured.close()
        _passed.add(engine)

    def _answers_are_the_models(self, bench: ImageBench, requests: Sequence[Request], when: str) -> None:
        outputs = bench.engine.generate(requests, IMAGE_ANSWER)
        expected = [bench.answer(r.prompt_token_ids, r.images) for r in requests]
        for request, output, wanted in zip(requests, outputs, expected, strict=True):
            found = list(output.completions[0].token_ids)
            others = [r.id for r, answer in zip(requests, expected, strict=True) if answer == found and r.id != request.id]
            hint = f"; that is the answer to request {others[0]}, which has another image" if others else ""
            assert found == wanted, (
                f"{when}, request {request.id} with {len(request.images)} images is answered by {found}, by the model's {wanted}{hint}"
            )
            assert list(output.prompt_token_ids) == list(request.prompt_token_ids), (
                f"the output of request {request.id} has the prompt {list(output.prompt_token_ids)}: the caller's has one token an image"
            )
