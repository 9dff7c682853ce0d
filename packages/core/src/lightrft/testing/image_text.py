"""What an engine that reads images is asked with. A tiny image-text model made on the spot, and what transformers answers to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from lightrft.testing.tiny import ALPHABET, EOS_ID, PAD_ID, tiny_tokenizer

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

IMAGE_ID, VIDEO_ID, START_ID, END_ID = 60, 61, 62, 63
SPECIAL = {"<|image_pad|>": IMAGE_ID, "<|video_pad|>": VIDEO_ID, "<|vision_start|>": START_ID, "<|vision_end|>": END_ID}
SIDE = 16
"""Pixels of an image's side: four patches of four, of which 2 x 2 become one token: an image has four."""

CHAT_TEMPLATE = (
    "{% for turn in messages %}{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""The words alone, and each image between the two tokens that begin and end one."""

_FILLERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def tiny_image_model(*, seed: int = 0) -> Any:
    """A random Qwen2.5-VL in float32 and eval mode, heads of 32, vocabulary of 64. Leaves the global random state as it was."""
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    text = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 1024, "pad_token_id": PAD_ID, "bos_token_id": None, "eos_token_id": EOS_ID,
        "rope_scaling": rope, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
        "fullatt_block_indexes": [1], "window_size": 16,
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, vision_start_token_id=START_ID,
        vision_end_token_id=END_ID, pad_token_id=PAD_ID, eos_token_id=EOS_ID, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tf.Qwen2_5_VLForConditionalGeneration(config).eval()


def tiny_image_folder(path: Path, model: Any) -> Path:
    """A HF folder of that model, its tokenizer and its image processor; returns `path`."""
    model.save_pretrained(path)
    image_tokenizer().save_pretrained(path)
    _image_processor().save_pretrained(path)
    return path


def image_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_tokenizer`, and the tokens that stand for images at the end of the vocabulary."""
    tokenizer = tiny_tokenizer(ALPHABET + _FILLERS[: IMAGE_ID - len(tiny_tokenizer())])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = CHAT_TEMPLATE
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(SPECIAL.values())
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
    seen = _image_processor()(images=list(images), return_tensors="pt")
    numbers = (seen["image_grid_thw"].prod(-1) // 4).tolist()
    ids = torch.tensor([[t for token in prompt for t in [token] * (numbers.pop(0) if token == IMAGE_ID else 1)]])
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_ID).long(), **seen}


def _image_processor() -> Any:
    return tf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    )


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
