"""The forms of prompts that `gather_and_generate` takes: token ids, or text, with or without images."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightrft.rollout.images import rgb_image
from lightrft.types import Request


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """The arguments of `gather_and_generate` that name prompts. `images` is flat, `images_num` says how many belong to each prompt (one to
    each where it is None); an image is a PIL image, a path, or a file's bytes.
    """

    prompt_token_ids: Sequence[Sequence[int]] | None
    prompts: Sequence[str] | None
    images: Sequence[Any] | None
    images_num: Sequence[int] | None
    logprobs: Sequence[bool] | bool


def collect_requests(source: PromptSource, *, tokenize: Callable[[str], list[int]]) -> list[Request]:
    """This rank's requests; ids and seeds are set later.

    Raises:
        ValueError: neither or both forms of prompts, token ids that are no whole numbers, or counts that do not fit together.
    """
    if (source.prompt_token_ids is None) == (source.prompts is None):
        raise ValueError("give all_prompt_token_ids or all_prompts, one of them (an empty list where this rank has none)")
    if source.prompt_token_ids is not None:
        token_ids = [_plain(ids, prompt) for prompt, ids in enumerate(source.prompt_token_ids)]
    else:
        token_ids = [tokenize(text) for text in source.prompts or ()]
    count = len(token_ids)
    logprobs = [source.logprobs] * count if isinstance(source.logprobs, bool) else list(source.logprobs)
    if len(logprobs) != count:
        raise ValueError(f"logprobs has {len(logprobs)} entries for {count} prompts")
    images = _split_images(source, count)
    return [
        Request(id=i, prompt_token_ids=ids, seed=0, logprobs=asked, images=own)
        for i, (ids, asked, own) in enumerate(zip(token_ids, logprobs, images, strict=True))
    ]


def with_images_read(requests: list[Request]) -> list[Request]:
    """The same with PIL images in RGB; a path, bytes or an object that comes again is read once.

    Raises:
        ValueError: one cannot be read (see `rgb_image`); prompt and image are named.
    """
    known: dict[Any, Any] = {}

    def read(source: Any, where: str) -> Any:
        key = source if isinstance(source, (str, bytes, os.PathLike)) else id(source)
        if key not in known:
            known[key] = rgb_image(source, where=where)
        return known[key]

    return [
        replace(r, images=tuple(read(image, f"all_images, prompt {r.id}, image {i}") for i, image in enumerate(r.images))) for r in requests
    ]


def _plain(token_ids: Sequence[int], prompt: int) -> list[int]:
    """Python's own integers, for engines know no others: callers bring tensors and numpy's, too."""
    try:
        return array("q", token_ids).tolist()
    except (TypeError, OverflowError) as error:
        raise ValueError(f"all_prompt_token_ids[{prompt}] is no sequence of token ids: {error}") from error


def _split_images(source: PromptSource, count: int) -> list[tuple[Any, ...]]:
    images = list(source.images or ())
    numbers = list(source.images_num) if source.images_num is not None else [1 if images else 0] * count
    if len(numbers) != count or sum(numbers) != len(images):
        raise ValueError(f"images_num={numbers!r} does not fit {count} prompts and {len(images)} images")
    stream = iter(images)
    return [tuple(next(stream) for _ in range(number)) for number in numbers]
