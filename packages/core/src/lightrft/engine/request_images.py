"""The images of requests, as the model's processor reads them: what every engine asks before its library hears of them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AutoConfig

from lightrft.engine.base import EngineSetup
from lightrft.engine.image_reader import ImageReader, PromptWithImages
from lightrft.errors import ImageError
from lightrft.types import Request
from lightrft.weights.model_class import reads_images

NUM_COMPARED = 8


class RequestImages:
    """A model folder's processor is loaded with the first request that has images. Local."""

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._reader: ImageReader | None = None
        self._compared = False

    def read(self, request: Request) -> PromptWithImages:
        """What the model is given for a request; nothing but its own tokens where it has no images.

        Raises:
            ValueError: as `check`; or the prompt, with all tokens of its images, leaves no room in `max_model_len`.
        """
        if not request.images:
            return PromptWithImages(token_ids=list(request.prompt_token_ids), marks={}, features={})
        limit = self._setup.max_model_len
        made = self._reader_for(request).read(request.prompt_token_ids, request.images, where=f"request {request.id}")
        if len(made.token_ids) >= limit:
            raise ValueError(
                f"request {request.id}: a prompt of {len(made.token_ids)} tokens, its {len(request.images)} images included, leaves no "
                f"room in a context of {limit}; bring smaller images, or allow longer prompts"
            )
        return made

    def reads_videos(self) -> bool:
        """Whether the folder's processor reads videos here: for an engine whose library makes room for them beforehand."""
        try:
            reader = ImageReader(self._setup.model_path, trust_remote_code=self._setup.trust_remote_code)
        except ValueError:  # none at all, which is told with the first image
            return False
        return bool(reader.video_token)

    def check(self, requests: Sequence[Request]) -> None:
        """For an engine whose library has its own preprocessing.

        Raises:
            ValueError: the model reads text alone, or a prompt has another number of image tokens than images.
        """
        for request in requests:
            if request.images:
                self._reader_for(request).check_count(request.prompt_token_ids, request.images, where=f"request {request.id}")

    def compare(self, requests: Sequence[Request], expanded: Sequence[Sequence[int]]) -> None:
        """The prompts that the engine's library made, each image with all of its tokens, with those that the trainer makes: of the first
        call with images, its first `NUM_COMPARED` such requests. `expanded` [len(requests)] are token ids; `check` was called before.

        Raises:
            ImageError: they differ; both are shown.
        """
        asked = [(r, list(ids)) for r, ids in zip(requests, expanded, strict=True) if r.images]
        if self._compared or not asked:
            return
        self._compared = True
        for request, found in asked[:NUM_COMPARED]:
            expected = self.read(request).token_ids
            if found != expected:
                raise ImageError(
                    f"request {request.id} with {len(request.images)} images: the engine's preprocessing makes {len(found)} tokens of its "
                    f"prompt, {found}, the trainer's {len(expected)}, {expected}; both have to read images by one processor"
                )

    def _reader_for(self, request: Request) -> ImageReader:
        """The processor of the engine's model folder; there is none where the model reads text alone."""
        if self._reader is None:
            path, trusted = self._setup.model_path, self._setup.trust_remote_code
            config = AutoConfig.from_pretrained(path, trust_remote_code=trusted)
            if not reads_images(config):
                name = (getattr(config, "architectures", None) or [type(config).__name__])[0]
                raise ValueError(
                    f"request {request.id} has {len(request.images)} images, but {name} of {path!r} reads text alone; name an image-text "
                    "model, or leave the images out"
                )
            self._reader = ImageReader(path, trust_remote_code=trusted)
        return self._reader
