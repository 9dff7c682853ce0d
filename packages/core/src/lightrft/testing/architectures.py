"""Architectures that a backend must shard, train and export without knowing them: tiny random ones of many shapes, and inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

Inputs = dict[str, torch.Tensor]

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

IMAGE_TOKEN = 60
IMAGE_TEXT = frozenset({"qwen2.5-vl"})
"""The kinds whose inputs may hold an image."""

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _qwen_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "fullatt_block_indexes": [1], "window_size": 16,
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(
        text_config=SMALL | {"rope_scaling": rope, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE_TOKEN,
        video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def _gpt2() -> Any:
    config = tf.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, pad_token_id=0, eos_token_id=1, attn_pdrop=0, embd_pdrop=0,
        resid_pdrop=0,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config)


_MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)),
    "llama tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SMALL)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SMALL)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**SMALL)),
    "gpt2": _gpt2,
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SMALL, **EXPERTS)),
    "classifier": lambda: tf.Qwen3ForSequenceClassification(tf.Qwen3Config(**SMALL, num_labels=1)),
    "qwen2.5-vl": _qwen_vl,
}
KINDS = tuple(_MAKERS)
"""Causal models of several families, one with tied weights, one of experts, a sequence classifier, an image-text model."""


def make_model(kind: str) -> Any:
    """A random model in float32 and eval mode, the same at every call. Leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _MAKERS[kind]().eval()


def text_inputs(seed: int = 0) -> Inputs:
    """One row of 6 tokens."""
    return {"input_ids": torch.randint(3, 60, (1, 6), generator=torch.Generator().manual_seed(seed))}


def image_inputs(seed: int = 0) -> Inputs:
    """One row with one image of 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[62, *[IMAGE_TOKEN] * 4, 63, *torch.randint(3, 60, (2,), generator=generator).tolist()]])
    pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=generator)
    grid = torch.tensor([[1, 4, 4]])
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": (ids == IMAGE_TOKEN).long()}


def inputs_of(kind: str, seed: int = 0) -> Inputs:
    """What exercises all of the model: with an image where it takes one."""
    return image_inputs(seed) if kind in IMAGE_TEXT else text_inputs(seed)
