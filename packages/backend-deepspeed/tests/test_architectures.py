"""Do architectures other than the tests' usual one train under ZeRO as on one process, and are they shared when frozen?"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.testing import run_spmd
from lightrft.testing.workload import SETTINGS, full_parameters, largest_difference, train

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gemma2":
        return tf.Gemma2ForCausalLM(tf.Gemma2Config(**SMALL))
    config = tf.GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, pad_token_id=0, eos_token_id=1, attn_pdrop=0, embd_pdrop=0,
        resid_pdrop=0,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config)


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    strategy = get_strategy(make_config(settings))
    out: dict[str, Any] = {}
    for kind in ("gemma2", "gpt2"):
        plain = make(kind).eval()
        frozen = strategy.prepare_model(make(kind), shard_size=strategy.world.world_size)
        with torch.no_grad():
            out[f"{kind} frozen"] = float((frozen(input_ids=IDS).logits - plain(input_ids=IDS).logits).abs().max())
        model, optimizer = strategy.prepare_trainable(make(kind), optimizer=SETTINGS)
        train(strategy, model, optimizer, last=3)
        out[kind] = full_parameters(strategy, model)
    strategy.shutdown()
    return out


def test_gemma_and_gpt2_train_as_on_one_process_and_are_shared_when_frozen() -> None:
    (expected,) = run_spmd(measure, 1, {"strategy": "single"})
    for stage in (2, 3):
        for rank in run_spmd(measure, 2, {"zero_stage": stage}, timeout_s=200):
            for kind in ("gemma2", "gpt2"):
                assert rank[f"{kind} frozen"] <= 1e-6
                assert largest_difference(rank[kind], expected[kind]) <= 3e-5
