"""A small random model that reads images, with its tokenizer and its processor, as a folder of the form that real ones have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PATCH, MERGED = 4, 2
"""Pixels of a patch's side, where nothing else is said; 2 x 2 patches become one token."""

MROPE = [4, 6, 6]
"""Of a head of 32 dimensions: how many pairs turn with time, height and width."""

CHAT_TEMPLATE = (
    "{% for turn in messages %}{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
"""The words alone, and each image and video between the two tokens that begin and end one."""


def scratch_image_model(
    tokenizer: Any, *, seed: int, hidden: int = 64, heads: int = 2, kv_heads: int = 1, vocab_size: int = 0, patch: int = PATCH
) -> Any:
    """A random Qwen2.5-VL in float32 and eval mode for a tokenizer that knows `SPECIAL`: two layers each for text and images, heads of 32
    dimensions (`hidden / heads`). Leaves the global random state as it was.
    """
    image, video, start, end = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL)
    rope = {"rope_type": "default", "mrope_section": MROPE, "rope_theta": 10000.0}
    text = {
        "vocab_size": vocab_size or len(tokenizer), "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "rope_scaling": rope,
        "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_heads": heads, "out_hidden_size": hidden,
        "patch_size": patch, "fullatt_block_indexes": [1], "window_size": 4 * patch,
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tf.Qwen2_5_VLForConditionalGeneration(config).eval()


def with_image_tokens(tokenizer: Any) -> Any:
    """The tokenizer with `SPECIAL` at the end of its vocabulary, and the chat template that writes them."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def image_processor(side: int, *, patch: int = PATCH) -> Any:
    """Makes every image about `side` x `side` pixels."""
    size = {"shortest_edge": side * side, "longest_edge": side * side}
    return tf.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=MERGED, temporal_patch_size=2, size=size)


def save_image_folder(path: Path, model: Any, tokenizer: Any, *, side: int, patch: int = PATCH) -> Path:
    """A HF folder of the model, its tokenizer and its image processor; returns `path`."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    image_processor(side, patch=patch).save_pretrained(path)
    return path
