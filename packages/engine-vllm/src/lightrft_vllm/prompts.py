"""Prompts as vLLM takes them: token ids, and the images and videos that its own preprocessing reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightrft.engine.image_reader import video_facts
from lightrft.types import Request, Video

EVERY_FRAME = {"do_sample_frames": False}


def vllm_prompt(request: Request) -> dict[str, Any]:
    """For vLLM, which puts the tokens of each image, and of each video, in the place of its one."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
    images = [one for one in request.images if not isinstance(one, Video)]
    videos = [_video(one) for one in request.images if isinstance(one, Video)]
    if images or videos:
        prompt["multi_modal_data"] = {kind: shown for kind, shown in (("image", images), ("video", videos)) if shown}
    if videos:
        prompt["mm_processor_kwargs"] = EVERY_FRAME
    return prompt


def _video(video: Video) -> tuple[Any, dict[str, Any]]:
    """Its frames, uint8 [T, H, W, 3], and what vLLM is told of them."""
    return np.stack([np.asarray(frame) for frame in video.frames]), video_facts(video.frames) | EVERY_FRAME
