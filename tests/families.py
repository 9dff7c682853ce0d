"""Tiny random models of many families, for tests that hold for all of them: every parameter and saved buffer has a value that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from lightrft.weights.buckets import saved_buffers

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    "max_position_embeddings": 256,
}  # fmt: skip
BLOCKS: dict[str, Any] = SMALL | {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
EXPERTS: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1}


def _deepseek_v3() -> Any:
    sizes = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32}
    fields = BLOCKS | {"num_key_value_heads": 2} | EXPERTS | {"n_group": 2, "topk_group": 1, "topk_method": "noaux_tc"} | sizes
    fields.pop("head_dim")
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**fields))


def _gemma4() -> Any:
    fields = BLOCKS | {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0, "global_head_dim": 32,
    }  # fmt: skip
    return tf.Gemma4ForCausalLM(tf.Gemma4TextConfig(**fields))


def _minimax_m2() -> Any:
    fields = BLOCKS | {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16, "scoring_func": "sigmoid"}
    return tf.MiniMaxM2ForCausalLM(tf.MiniMaxM2Config(**fields))


WITH_BUFFERS: dict[str, Callable[[], Any]] = {
    "deepseek-v3": _deepseek_v3,
    "glm4-moe": lambda: tf.Glm4MoeForCausalLM(tf.Glm4MoeConfig(**BLOCKS, **EXPERTS)),
    "minimax-m2": _minimax_m2,
    "apertus": lambda: tf.ApertusForCausalLM(tf.ApertusConfig(**BLOCKS)),
    "gemma4": _gemma4,
}
"""Families whose state dict has buffers: a router's bias, an activation's constants, a layer's scale."""

PLAIN: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**BLOCKS, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**BLOCKS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    ),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SMALL, intermediate_size=96, num_attention_heads=2)),
    "granite-moe": lambda: tf.GraniteMoeForCausalLM(tf.GraniteMoeConfig(**BLOCKS, num_local_experts=4, num_experts_per_tok=2)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**BLOCKS)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=64, n_positions=256, n_embd=64, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=2, eos_token_id=1)
    ),
}

FAMILIES: dict[str, Callable[[], Any]] = WITH_BUFFERS | PLAIN


def make_family(name: str, *, seed: int = 0) -> Any:
    """The family's model in float32 and eval mode, other values for another seed. Leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[name]().float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            for buffer in saved_buffers(model).values():
                buffer.add_(0.5 * torch.rand_like(buffer.float()))
    return model
