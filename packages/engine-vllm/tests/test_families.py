"""A sync arrives whole in families that vLLM holds otherwise. Packed experts, no output layer of its own, classes of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES as TABLE

from lightrft.engine.base import EngineSetup
from lightrft.plugins import Registry
from lightrft.testing.engine_bench import GREEDY, requests_of, weights_of
from lightrft.testing.judge import greedy_tokens, logprob_error
from lightrft.testing.tiny import tiny_tokenizer
from lightrft.weights.verify import SentChecksums

tf: Any = transformers
SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=512,
    pad_token_id=0, bos_token_id=2, eos_token_id=1,
)  # fmt: skip
HEADS: dict[str, Any] = SIZES | dict(num_key_value_heads=1, head_dim=32)
FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**HEADS, query_pre_attn_scalar=32)),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)),
    "deepseek-v3": TABLE["deepseek-v3-latent"],
}
PROMPTS = [[3, 4, 5], [3 + (7 * i) % 50 for i in range(200)]]


def model_of(family: str, seed: int) -> Any:
    """With values large enough that every tensor counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family]().eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers_before_and_after_a_sync(tmp_path: Path, family: str) -> None:
    models = [model_of(family, seed) for seed in range(2)]
    models[0].save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    engine = Registry.discover().load("engine", "vllm")(
        EngineSetup(
            model_path=str(tmp_path), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=256, max_batch_size=8,
            mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None,
        )
    )  # fmt: skip
    try:
        for version, model in enumerate(models):
            if version:
                sent = SentChecksums()
                engine.update_weights(sent.watch(weights_of(model)), version=version)
                assert sent.differing(engine.weight_checksums()) == []
                assert not [name for name in sent.unverified(engine.weight_checksums()) if ".experts." in name]
            outputs = engine.generate(requests_of(PROMPTS), GREEDY)
            # transformers in this same process, on classes that vLLM has rewritten for itself
            assert [list(o.completions[0].token_ids) for o in outputs] == [greedy_tokens(model, p, max_new_tokens=8) for p in PROMPTS]
            assert max(logprob_error(model, o, o.completions[0]) for o in outputs) < 1e-5
        if family == "qwen3-moe":
            experts_exchanged_are_named(engine, sent)
    finally:
        engine.shutdown()
    assert model_of(family, 3)(torch.tensor([PROMPTS[0]])).logits.shape == (1, 3, 64), "a new model of that family can be made"


def experts_exchanged_are_named(engine: Any, sent: SentChecksums) -> None:
    """In the layout that vLLM packs them into."""
    stacks = {"w13_weight": "gate_up_proj", "w2_weight": "down_proj"}
    for own, name in stacks.items():

        def exchange(model: torch.nn.Module, own: str = own) -> None:
            [stack] = [p for n, p in model.named_parameters() if "layers.1." in n and n.endswith(own)]
            stack.data[[1, 3]] = stack.data[[3, 1]].clone()

        engine._llm.apply_model(exchange)
        assert sent.differing(engine.weight_checksums()) == [f"model.layers.1.mlp.experts.{name}[{expert}]" for expert in (1, 3)]
        engine._llm.apply_model(exchange)
        assert sent.differing(engine.weight_checksums()) == []
