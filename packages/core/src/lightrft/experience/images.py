"""The images of prompts: read once a prompt, as pictures for the engine and for rewards, and as inputs for the models that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightrft.batch.images import BlankPrompt, ImageInputs
from lightrft.data.prompts import Prompt
from lightrft.distributed.collectives import agree
from lightrft.distributed.world import World
from lightrft.engine.image_reader import ImageReader, PromptWithImages
from lightrft.errors import DataError
from lightrft.rollout.images import read_picture
from lightrft.types import Completion, Request, RequestOutput, Video, each_frame, sources_of

Read = tuple[Sequence[int], ImageInputs | None]
"""A prompt's token ids, with all tokens of its images, and what the models are given of them."""


@dataclass(frozen=True)
class ReadPrompts:
    """This rank's prompts with their images. `pictures`: of each prompt its images, PIL in RGB, and videos of such."""

    prompts: Sequence[Prompt]
    pictures: Sequence[tuple[Any, ...]]
    made: Future[list[Read]] | None
    world: World

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of `gather_and_generate` that name these prompts."""
        asked: dict[str, Any] = {"all_prompt_token_ids": [list(prompt.token_ids) for prompt in self.prompts]}
        for kind, is_video in (("images", False), ("videos", True)):
            own = [[one for one in pictures if isinstance(one, Video) == is_video] for pictures in self.pictures]
            if any(own):
                asked |= {f"all_{kind}": [one for some in own for one in some], f"{kind}_num": list(map(len, own))}
        return asked

    def whole(self) -> list[Read]:
        """Of each prompt, once the processor is through. Collective where prompts may have images.

        Raises:
            DataError: images that the processor does not take, on all ranks together.
        """
        if self.made is None:
            return [(prompt.token_ids, None) for prompt in self.prompts]
        error = self.made.exception()
        agree(error, group=self.world.group, doing="reading images")
        return self.made.result()


def text_of_prompts(prompts: Sequence[Prompt], *, special: Sequence[int]) -> list[Sequence[int]]:
    """Token ids to ask an engine without images: of the prompts that have none, else of the others without special tokens."""
    text: list[Sequence[int]] = [prompt.token_ids for prompt in prompts if not prompt.images]
    return text or [[token for token in prompt.token_ids if token not in special] for prompt in prompts]


class PromptImages:
    """Reads the images of prompts with a model's processor; without a reader, prompts are text alone and nothing is done.

    A prompt of more than `longest` tokens (0: any number), those of its images included, is an error. `max_pixels` (0: any number): larger
    images are made smaller, their sides in proportion, before the engine and the processor see them.
    """

    def __init__(self, reader: ImageReader | None, *, world: World, max_pixels: int = 0, longest: int = 0) -> None:
        self._reader, self._world, self._max_pixels, self._longest = reader, world, max_pixels, longest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lightrft-images")
        self.blank: BlankPrompt | None = None
        """See `BlankPrompt`; None without a reader."""
        if reader is not None:
            made = reader.blank()
            self.blank = BlankPrompt(token_ids=torch.tensor(made.token_ids), images=_inputs(made))

    def read(self, prompts: Sequence[Prompt]) -> ReadPrompts:
        """Decodes the pictures now; the processor goes on in a thread, beside what the caller does next (an engine that generates).
        Collective where there is a reader.

        Raises:
            DataError: an image that cannot be read, with its row and file, on all ranks together.
        """
        if self._reader is None:
            return ReadPrompts(prompts, [()] * len(prompts), None, self._world)
        pictures: list[tuple[Any, ...]] = []
        error: Exception | None = None
        try:
            pictures = [self._pictures(prompt) for prompt in prompts]
        except DataError as caught:
            error = caught
        agree(error, group=self._world.group, doing="reading images")
        return self.shown(prompts, pictures)

    def shown(self, prompts: Sequence[Prompt], pictures: Sequence[tuple[Any, ...]]) -> ReadPrompts:
        """The prompts with these pictures for their own; there has to be a reader. Local."""
        return ReadPrompts(prompts, pictures, self._thread.submit(self._made, list(prompts), pictures), self._world)

    def of_request(self, request: Request) -> PromptWithImages:
        """What a forward pass takes for a request with images; there has to be a reader. Local."""
        assert self._reader is not None
        return self._reader.read(request.prompt_token_ids, request.images, where=f"request {request.id}")

    def without_reserved(self, outputs: Sequence[RequestOutput]) -> tuple[list[RequestOutput], int]:
        """Completions end before a token that the model would take for a place of an image; also, how many were truncated there."""
        if self._reader is None:
            return list(outputs), 0
        found = [replace(output, completions=tuple(self._cut(one) for one in output.completions)) for output in outputs]
        pairs = [(a, b) for one, other in zip(outputs, found, strict=True) for a, b in zip(one.completions, other.completions, strict=True)]
        return found, sum(len(a.token_ids) != len(b.token_ids) for a, b in pairs)

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _pictures(self, prompt: Prompt) -> tuple[Any, ...]:
        try:
            names = ["video" if isinstance(image, Video) else "image" for image in prompt.images]
            wheres = [f"{prompt.where}, {name} {names[:at].count(name)}" for at, name in enumerate(names)]
            read = [read_picture(image, where=where) for image, where in zip(prompt.images, wheres, strict=True)]
        except ValueError as error:
            raise DataError(str(error)) from error
        return tuple(each_frame(image, self._small) for image in read)

    def _small(self, image: Any) -> Any:
        width, height = image.size
        if not self._max_pixels or width * height <= self._max_pixels:
            return image
        fraction = (self._max_pixels / (width * height)) ** 0.5
        return image.resize((max(int(width * fraction), 1), max(int(height * fraction), 1)))

    def _made(self, prompts: Sequence[Prompt], pictures: Sequence[tuple[Any, ...]]) -> list[Read]:
        return [self._read(prompt, own) if own else (prompt.token_ids, None) for prompt, own in zip(prompts, pictures, strict=True)]

    def _read(self, prompt: Prompt, pictures: tuple[Any, ...]) -> Read:
        assert self._reader is not None
        names = [Path(source).name for one in prompt.images for source in sources_of(one) if isinstance(source, str)]
        try:
            made = self._reader.read(prompt.token_ids, pictures, where=f"{prompt.where} ({', '.join(names)})" if names else prompt.where)
        except ValueError as error:
            raise DataError(str(error)) from error
        if self._longest and len(made.token_ids) > self._longest:
            raise DataError(
                f"{prompt.where}: the prompt has {len(made.token_ids)} tokens with those of its images, more than prompt_max_len="
                f"{self._longest}; raise it, or bound the images by max_image_pixels"
            )
        return made.token_ids, _inputs(made)

    def _cut(self, completion: Completion) -> Completion:
        assert self._reader is not None
        end = next((place for place, token in enumerate(completion.token_ids) if token in self._reader.reserved), None)
        if end is None:
            return completion
        logprobs = None if completion.logprobs is None else completion.logprobs[:end]
        return replace(completion, token_ids=completion.token_ids[:end], logprobs=logprobs, finish_reason="abort")


def _inputs(made: PromptWithImages) -> ImageInputs:
    return ImageInputs(marks={name: marks[0] for name, marks in made.marks.items()}, features=made.features)
