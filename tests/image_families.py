"""Tiny random models that read images, of several designs, each as a folder with its tokenizer and its processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from lightrft.testing.image_text import (
    END_ID,
    IMAGE_ID,
    PATCH,
    SIDE,
    START_ID,
    VIDEO_ID,
    image_tokenizer,
    tiny_image_folder,
    tiny_image_model,
)
from lightrft.testing.tiny import EOS_ID, PAD_ID

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers
TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32,
    "num_key_value_heads": 1, "max_position_embeddings": 1024, "pad_token_id": PAD_ID, "bos_token_id": None, "eos_token_id": EOS_ID,
}  # fmt: skip
LAYERS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_ID,
    "video_token_id": VIDEO_ID,
    "vision_start_token_id": START_ID,
    "vision_end_token_id": END_ID,
}
IMAGE = (START_ID, IMAGE_ID, END_ID)
VIDEO = (START_ID, VIDEO_ID, END_ID)
LINES = ["\n" * count for count in range(1, 5)]
"""Which tokenizers of Gemma 3 have for tokens, and vLLM asks for."""


def qwen25_vl(folder: Path, seed: int) -> Any:
    model = tiny_image_model(seed=seed)
    tiny_image_folder(folder, model)
    return model


def qwen3_vl(folder: Path, seed: int) -> Any:
    """Features of the part that reads images go into deeper layers of the text, too."""
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "mrope_interleaved": True, "rope_theta": 10000.0}
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64, "patch_size": PATCH,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "in_channels": 3,
    }  # fmt: skip
    config = tf.Qwen3VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False, **TOKENS)
    model = _random(tf.Qwen3VLForConditionalGeneration, config, seed)
    tiny_image_folder(folder, model)
    return model


def llava(folder: Path, seed: int) -> Any:
    """An image is its patches, projected, and a token of the class that is dropped."""
    vision = LAYERS | {"image_size": SIDE, "patch_size": SIDE // 2}
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**vision), image_token_id=IMAGE_ID, image_token_index=IMAGE_ID
    )
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = tf.LlavaProcessor(
        images, image_tokenizer(), patch_size=SIDE // 2, vision_feature_select_strategy="default", image_token="<|image_pad|>",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return _saved(folder, _random(tf.LlavaForConditionalGeneration, config, seed), processor)


def gemma3(folder: Path, seed: int) -> Any:
    """The tokens of an image see each other in both directions, and stand between two that its processor writes."""
    config = tf.Gemma3Config(
        text_config=TEXT | {"sliding_window": 32, "vocab_size": 64 + len(LINES)}, mm_tokens_per_image=4,
        vision_config=LAYERS | {"image_size": SIDE, "patch_size": PATCH}, image_token_index=IMAGE_ID, boi_token_index=START_ID,
        eoi_token_index=END_ID,
    )  # fmt: skip
    names = {"image_token": "<|image_pad|>", "boi_token": "<|vision_start|>", "eoi_token": "<|vision_end|>"}
    tokenizer = _naming(names)
    tokenizer.add_tokens(LINES)
    images = tf.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = tf.Gemma3Processor(image_processor=images, tokenizer=tokenizer, image_seq_length=4)
    return _saved(folder, _random(tf.Gemma3ForConditionalGeneration, config, seed), processor)


def idefics3(folder: Path, seed: int) -> Any:
    """Patches are put together by their places, and an image stands between tokens of its own, which its processor writes."""
    tokenizer = image_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]}
    )
    config = tf.Idefics3Config(
        text_config=tf.LlamaConfig(**TEXT | {"vocab_size": len(tokenizer)}), scale_factor=2, pad_token_id=PAD_ID,
        vision_config=LAYERS | {"image_size": SIDE, "patch_size": PATCH}, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    longest = {"longest_edge": SIDE}
    images = tf.Idefics3ImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
    processor = tf.Idefics3Processor(image_processor=images, tokenizer=tokenizer, image_seq_len=4)
    return _saved(folder, _random(tf.Idefics3ForConditionalGeneration, config, seed), processor)


FAMILIES: dict[str, Callable[[Path, int], Any]] = {
    "qwen2.5-vl": qwen25_vl, "qwen3-vl": qwen3_vl, "llava": llava, "gemma3": gemma3, "idefics3": idefics3,
}  # fmt: skip
"""Each makes a folder, and returns the model that it holds."""


def video_folder(path: Path, family: str, seed: int) -> Any:
    """The folder of a `FAMILIES` that reads videos, with what transformers reads them by: as many pixels a frame as an image. The model."""
    model = FAMILIES[family](path, seed)
    kind, frames = (tf.Qwen2VLVideoProcessor, 1) if family == "qwen2.5-vl" else (tf.Qwen3VLVideoProcessor, 2)
    pixels = frames * SIDE * SIDE
    images = tf.AutoImageProcessor.from_pretrained(path)  # vLLM normalises videos as images, which real models do as well
    kind(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2, size={"shortest_edge": pixels, "longest_edge": frames * pixels},
        cap_pixels_per_frame=False, image_mean=images.image_mean, image_std=images.image_std,
    ).save_pretrained(path)  # fmt: skip
    return model


def _naming(names: dict[str, str]) -> Any:
    """The tokenizer, which knows some of its tokens by these names."""
    tokenizer = image_tokenizer()
    ends = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=names, **ends)


def _random(cls: Any, config: Any, seed: int) -> Any:
    """In float32 and eval mode, with values large enough that every tensor counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def _saved(folder: Path, model: Any, processor: Any) -> Any:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
