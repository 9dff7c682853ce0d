"""A tiny model of experts, for what holds of engines that load such models."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from lightrft.testing.tiny import EOS_ID, HEAD_SIZE, PAD_ID

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

EXPERTS, CHOSEN = 4, 2
"""Of each layer, and of each token."""


def tiny_expert_model(*, seed: int = 0) -> Any:
    """A random Qwen3-MoE of two layers in float32 and eval mode, whose every expert counts. Leaves the global random state as it was."""
    config = tf.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HEAD_SIZE,
        max_position_embeddings=4096,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=EOS_ID,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = tf.Qwen3MoeForCausalLM(config).eval().float()
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model
