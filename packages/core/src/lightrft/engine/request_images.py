"""The images of requests, for an engine whose library has its own preprocessing: that they fit, and become the trainer's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AutoConfig

from lightrft.engine.base import EngineSetup
from lightrft.engine.image_reader import ImageReader
from lightrft.errors import ImageError
from lightrft.types import Request
from lightrft.weights.model_class import reads_images

NUM_COMPARED = 8


class RequestImages:
    """Looks at requests with images only; a model folder's processor is loaded with the first. Local."""

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._reader: ImageReader | None = None
        self._compared = False

    def check(self, requests: Sequence[Request]) -> None:
        """Before the engine's library hears of them.

        Raises:
            ValueError: the model reads text alone, or a prompt has another number of image tokens than images.
        """
        for request in requests:
            if request.images:
                self._reader = self._reader or image_reader_of(self._setup, request)
                self._reader.check_count(request.prompt_token_ids, request.images, where=f"request {request.id}")

    def compare(self, requests: Sequence[Request], expanded: Sequence[Sequence[int]]) -> None:
        """The prompts that the engine's library made, each image with all of its tokens, with those that the trainer makes: of the first
        call with images, its first `NUM_COMPARED` such requests. `expanded` [len(requests)] are token ids; `check` was called before.

        Raises:
            ImageError: they differ; both are shown.
        """
        asked = [(r, list(ids)) for r, ids in zip(requests, expanded, strict=True) if r.images]
        if self._compared or not asked or self._reader is None:
            return
        self._compared = True
        for request, found in asked[:NUM_COMPARED]:
            expected = self._reader.read(request.prompt_token_ids, request.images, where=f"request {request.id}").token_ids
            if found != expected:
                raise ImageError(
                    f"request {request.id} with {len(request.images)} images: the engine's preprocessing makes {len(found)} tokens of its "
                    f"prompt, {found}, the trainer's {len(expected)}, {expected}; both have to read images by one processor"
                )


def image_reader_of(setup: EngineSetup, request: Request) -> ImageReader:
    """The processor of an engine's model folder. Raises ValueError where the model reads text alone, or has no processor for images."""
    path = setup.model_path
    config = AutoConfig.from_pretrained(path, trust_remote_code=setup.trust_remote_code)
    if not reads_images(config):
        name = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        raise ValueError(
            f"request {request.id} has {len(request.images)} images, but {name} of {path!r} reads text alone; name an image-text model, "
            "or leave the images out"
        )
    return ImageReader(path, trust_remote_code=setup.trust_remote_code)
