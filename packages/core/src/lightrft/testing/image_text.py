"""What an engine that reads images is asked with. A tiny image-text model made on the spot, and what transformers answers to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from lightrft.models.scratch_images import SPECIAL, image_processor, save_image_folder, scratch_image_model, with_image_tokens
from lightrft.testing.tiny import ALPHABET, tiny_tokenizer

IMAGE_ID, VIDEO_ID, START_ID, END_ID = 60, 61, 62, 63
PATCH = 14
"""Pixels of a patch's side: that of every Qwen2.5-VL, which SGLang takes for granted."""

SIDE = 4 * PATCH
"""Pixels of an image's side: four patches, of which 2 x 2 become one token: an image has four."""

_FILLERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def tiny_image_model(*, seed: int = 0) -> Any:
    """A random Qwen2.5-VL in float32 and eval mode, heads of 32, vocabulary of 64. Leaves the global random state as it was."""
    return scratch_image_model(image_tokenizer(), seed=seed, patch=PATCH)


def tiny_image_folder(path: Path, model: Any) -> Path:
    """A HF folder of that model, its tokenizer and its image processor; returns `path`."""
    return save_image_folder(path, model, image_tokenizer(), side=SIDE, patch=PATCH)


def image_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_tokenizer`, and the tokens that stand for images at the end of the vocabulary."""
    tokenizer: PreTrainedTokenizerFast = with_image_tokens(tiny_tokenizer(ALPHABET + _FILLERS[: IMAGE_ID - len(tiny_tokenizer())]))
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [IMAGE_ID, VIDEO_ID, START_ID, END_ID]
    return tokenizer


def noise(seed: int) -> Any:
    """A PIL image of random pixels, another for each seed."""
    from PIL import Image

    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def image_inputs(prompt: Sequence[int], images: Sequence[Any]) -> dict[str, torch.Tensor]:
    """What the model's forward pass takes: [1, P'] token ids, in which each image token stands as often as its image has tokens."""
    if not images:
        return {"input_ids": torch.tensor([list(prompt)])}
    seen = image_processor(SIDE, patch=PATCH)(images=list(images), return_tensors="pt")
    numbers = (seen["image_grid_thw"].prod(-1) // 4).tolist()
    ids = torch.tensor([[t for token in prompt for t in [token] * (numbers.pop(0) if token == IMAGE_ID else 1)]])
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_ID).long(), **seen}


def image_rows(folder: Path, *, counts: Sequence[int]) -> Path:
    """`rows.jsonl` in `folder`: row i asks for i + 1 and has counts[i] images of noise, which are files in `pictures`; returns its path."""
    (folder / "pictures").mkdir(exist_ok=True)
    lines = []
    for number, count in enumerate(counts):
        images = [f"pictures/{number}-{k}.png" for k in range(count)]
        for k, name in enumerate(images):
            noise(10 * number + k).save(folder / name)
        lines.append(json.dumps({"prompt": f"{number} + 1 =", "answer": str(number + 1), "images": images}) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path
