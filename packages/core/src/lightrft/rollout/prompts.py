"""The forms of prompts that `gather_and_generate` takes: token ids, or text, with or without images."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightrft.rollout.images import read_picture
from lightrft.types import Request, Video


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """The arguments of `gather_and_generate` that name prompts. `images` is flat, `images_num` says how many belong to each prompt (one to
    each where it is None); an image is a PIL image, a path, or a file's bytes. `videos` and `videos_num` likewise: see `Video`.
    """

    prompt_token_ids: Sequence[Sequence[int]] | None
    prompts: Sequence[str] | None
    images: Sequence[Any] | None
    images_num: Sequence[int] | None
    logprobs: Sequence[bool] | bool
    videos: Sequence[Any] | None = None
    videos_num: Sequence[int] | None = None


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
    images = _split(source.images, source.images_num, count, kind="image")
    videos = [tuple(map(_video, own)) for own in _split(source.videos, source.videos_num, count, kind="video")]
    return [
        Request(id=i, prompt_token_ids=ids, seed=0, logprobs=asked, images=(*shown, *films))
        for i, (ids, asked, shown, films) in enumerate(zip(token_ids, logprobs, images, videos, strict=True))
    ]


def with_images_read(requests: list[Request]) -> list[Request]:
    """The same with PIL images in RGB, and videos of such frames; a path, bytes or an object that comes again is read once.

    Raises:
        ValueError: one cannot be read (see `read_picture`); prompt and image are named.
    """
    known: dict[Any, Any] = {}

    def read(source: Any, where: str) -> Any:
        key = source if isinstance(source, (str, bytes, os.PathLike)) else id(source)
        if key not in known:
            known[key] = read_picture(source, where=where)
        return known[key]

    def of(request: Request) -> tuple[Any, ...]:
        shown = sum(not isinstance(one, Video) for one in request.images)
        names = [f"image {i}" if i < shown else f"video {i - shown}" for i in range(len(request.images))]
        wheres = [f"all_{name.split()[0]}s, prompt {request.id}, {name}" for name in names]
        return tuple(read(image, where) for image, where in zip(request.images, wheres, strict=True))

    return [replace(request, images=of(request)) for request in requests]


def _plain(token_ids: Sequence[int], prompt: int) -> list[int]:
    """Python's own integers, for engines know no others: callers bring tensors and numpy's, too."""
    try:
        return array("q", token_ids).tolist()
    except (TypeError, OverflowError) as error:
        raise ValueError(f"all_prompt_token_ids[{prompt}] is no sequence of token ids: {error}") from error


def _video(source: Any) -> Video:
    return source if isinstance(source, Video) else Video(frames=tuple(source) if isinstance(source, list) else source)


def _split(given: Sequence[Any] | None, counts: Sequence[int] | None, count: int, *, kind: str) -> list[tuple[Any, ...]]:
    flat = list(given if given is not None else ())
    numbers = list(counts) if counts is not None else [1 if flat else 0] * count
    if len(numbers) != count or sum(numbers) != len(flat):
        raise ValueError(f"{kind}s_num={numbers!r} does not fit {count} prompts and {len(flat)} {kind}s")
    stream = iter(flat)
    return [tuple(next(stream) for _ in range(number)) for number in numbers]
