"""Faults of engines with images. One for each class here, on the fake engine, which then declares that it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kit_mutants.mutant import mutant
from lightrft.plugins.specs import Capability
from lightrft.testing.fake_engine import FakeEngine
from lightrft.types import Request, RequestOutput, SamplingParams

IMAGES = "images_are_read_in_their_place"
DECLARED = [Capability.MULTIMODAL]
Outputs = list[RequestOutput]


@mutant("fake engine", "images are not seen", test=IMAGES, words="request 1 with 1 images is answered by", declares=DECLARED)
class ImagesUnseen(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate([replace(r, images=()) for r in requests], sampling)


@mutant("fake engine", "an image is kept for the tokens around it", test=IMAGES, words="which has another image", declares=DECLARED)
class ImageOfAnother(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        seen = {tuple(r.prompt_token_ids): r.images for r in reversed(requests)}
        return super().generate([replace(r, images=seen[tuple(r.prompt_token_ids)]) for r in requests], sampling)


@mutant(
    "fake engine", "a prompt's images are seen in reverse", test=IMAGES, words="request 4 with 2 images is answered by", declares=DECLARED
)
class ImagesInReverse(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate([replace(r, images=r.images[::-1]) for r in requests], sampling)


@mutant(
    "fake engine", "a prompt's first image is seen for each of them", test=IMAGES, words="request 4 with 2 images is answered by",
    declares=DECLARED,
)  # fmt: skip
class ImageRepeated(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        return super().generate([replace(r, images=r.images[:1] * len(r.images)) for r in requests], sampling)


@mutant(
    "fake engine", "what was computed of images is kept over a sync", test=IMAGES,
    words="after a sync, request 1 with 1 images is answered by", declares=DECLARED,
)  # fmt: skip
class ImagesOfOlderWeights(FakeEngine):
    _first: int | None = None

    def _next(self, request: Request, sampling: SamplingParams, sample: int, tokens: list[int]) -> int:
        now = self._weights
        self._first = now if self._first is None else self._first
        self._weights = self._first if request.images else now
        try:
            return super()._next(request, sampling, sample, tokens)
        finally:
            self._weights = now


@mutant("fake engine", "prompts come back with an image's tokens", test=IMAGES, words="one token an image", declares=DECLARED)
class PromptsExpanded(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        outputs = super().generate(requests, sampling)
        return [
            replace(o, prompt_token_ids=[2, 2, 2, *o.prompt_token_ids]) if r.images else o for r, o in zip(requests, outputs, strict=True)
        ]


@mutant(
    "fake engine", "images declared and refused", test=IMAGES, words="this engine reads text", declares=DECLARED,
)  # fmt: skip
class ImagesRefused(FakeEngine):
    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Outputs:
        if any(r.images for r in requests):
            raise NotImplementedError("this engine reads text")
        return super().generate(requests, sampling)
