"""Is any architecture that transformers knows cut block by block, in groups of any size, without a change of its outputs?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch.distributed.fsdp import FSDPModule

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
IMAGE = 60
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def qwen_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "fullatt_block_indexes": [1], "window_size": 16,
    }  # fmt: skip
    config = tf.Qwen2_5_VLConfig(
        text_config=SMALL | {"rope_scaling": rope, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE,
        video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def make(kind: str) -> Any:
    """With 4 blocks in all for image-text, 2 for the others."""
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    torch.manual_seed(0)
    if kind == "qwen2.5-vl":
        return qwen_vl().eval()
    made: Any = {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SMALL)),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SMALL)),
        "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**SMALL)),
        "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
        "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**SMALL, **experts)),
        "classifier": lambda: tf.Qwen3ForSequenceClassification(tf.Qwen3Config(**SMALL, num_labels=1)),
    }[kind]()
    return made.eval()


def inputs(kind: str) -> list[dict[str, torch.Tensor]]:
    if kind != "qwen2.5-vl":
        return [{"input_ids": IDS}]
    ids = torch.tensor([[62, *[IMAGE] * 4, 63, 3, 4]])
    pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    image = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    return [{"input_ids": IDS}, image | {"mm_token_type_ids": (ids == IMAGE).long()}]


KINDS = ["llama", "qwen2", "qwen3", "gemma2", "gpt2", "qwen3-moe", "classifier", "qwen2.5-vl"]


def frozen() -> dict[str, Any]:
    strategy = get_strategy(make_config({"fsdp": True}))
    out: dict[str, Any] = {}
    for kind in KINDS:
        with torch.no_grad():
            expected = [make(kind)(**given).logits for given in inputs(kind)]
            for size in (1, 2):
                model = strategy.prepare_model(make(kind), shard_size=size)
                found = [model(**given).logits for given in inputs(kind)]
                pairs = zip(found, expected, strict=True)
                out[f"{kind} {size}"] = max(float((a - b).abs().max()) for a, b in pairs)
        out[kind] = sorted(type(m).__name__.removeprefix("FSDP") for m in model.modules() if isinstance(m, FSDPModule))
    return out


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_spmd(frozen, 2, timeout_s=200)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_whole_model_and_every_block_is_cut(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        assert rank[f"{kind} 1"] <= 1e-6 and rank[f"{kind} 2"] <= 1e-6
        blocks = [name for name in rank[kind] if name.endswith(("Layer", "Block"))]
        assert len(blocks) == (4 if kind == "qwen2.5-vl" else 2), rank[kind]
        assert len(rank[kind]) == len(blocks) + 1, "and the root"


def several() -> list[bool]:
    strategy = get_strategy(make_config({"fsdp": True}))
    models = [tiny_causal_lm(seed=seed) for seed in range(3)]
    with torch.no_grad():
        expected = [model.eval()(input_ids=IDS).logits for model in models]
        prepared = [strategy.prepare_model(m, shard_size=n) for m, n in zip(models, (1, 2, 4), strict=True)]
        return [torch.equal(m(input_ids=IDS).logits, logits) for m, logits in zip(prepared, expected, strict=True)]


def test_models_each_shared_by_its_own_number_of_ranks() -> None:
    assert run_spmd(several, 4) == [[True] * 3] * 4
