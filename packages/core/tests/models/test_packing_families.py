"""Every family of causal models that transformers has and that can be made small: packed exactly, or refused by name.

A list of names would be out of date with the next release of transformers; what is listed here is what was found, and
the check before the first packed pass has to agree with it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lightrft.config.row_checks import packing_problem
from lightrft.errors import ModelError
from lightrft.models import packing_check
from lightrft.models.attention import use_our_attention
from lightrft.models.packing_check import check_packing
from lightrft.testing.packed_rows import VOCAB, logprobs_alone, logprobs_packed, sequences

tf: Any = transformers

SETTING = "packing_samples=True"

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2, "attn_logit_softcapping": 2.0, "attention_chunk_size": 4,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_local_experts": 4, "first_k_dense_replace": 1, "n_shared_experts": 1, "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1, "n_positions": 128, "n_embd": 32, "n_layer": 4, "n_head": 4, "d_model": 32, "n_heads": 4, "n_layers": 4,
    "max_seq_len": 128, "ffn_dim": 48, "word_embed_proj_dim": 32, "rotary_dim": 8, "state_size": 8, "mamba_d_state": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
"""Sizes of latent attention (DeepSeek), whose heads are no `head_dim` wide."""

PACKED = (
    "afmoe", "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "deepseek_v2", "deepseek_v3",
    "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "gemma",
    "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode",
    "gpt_neox", "gpt_oss", "granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "jetmoe", "llama", "minicpm3", "minimax_m2", "ministral", "mistral", "mixtral",
    "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "starcoder2", "vaultgemma",
)  # fmt: skip

BY_CONFIGURATION = {
    "bloom": "a model with ALiBi",
    "mpt": "a model with ALiBi",
    "mamba": "a state-space model",
    "falcon_mamba": "a state-space model",
    "bamba": "a state-space model",
    "jamba": "a state-space model",
    "recurrent_gemma": "one with layers of the kind recurrent",
    "granitemoehybrid": "one with layers of the kind linear_attention",
    "kimi_linear": "one with layers of the kind linear_attention",
    "llama4_text": "one with layers of the kind chunked_attention",
    "minimax": "one with layers of the kind linear_attention",
    "nemotron_h": "one with layers of the kind linear_attention",
    "qwen3_next": "one with layers of the kind linear_attention",
    "rwkv": "a recurrent model",
    "xlstm": "a recurrent model",
}
"""Refused before a model is loaded, and by the check too, where it gets that far."""

BY_ATTENTION = ("bloom", "codegen", "falcon", "gptj", "mpt", "rwkv")
"""Their attention is not transformers' interface's."""

BY_CHECK = {
    "bamba": "other tokens in one sequence move the logits of the next by",
    "biogpt": "a packed row has no attention mask, and this model makes one",
    "falcon_mamba": "other tokens in one sequence move the logits of the next by",
    "granitemoehybrid": "other tokens in one sequence move the logits of the next by",
    "jamba": "other tokens in one sequence move the logits of the next by",
    "llama4_text": "some of its layers attend in chunks",
    "mamba": "other tokens in one sequence move the logits of the next by",
    "minimax": "other tokens in one sequence move the logits of the next by",
    "nemotron": "NemotronAttention is not told where sequences end: its model drops arguments of the call",
    "phimoe": "its masks have windows 4, its layers ask for no window",
    "qwen2_moe": "its masks have windows 4, no window, its layers ask for no window",
    "qwen3_next": "other tokens in one sequence move the logits of the next by",
    "recurrent_gemma": "other tokens in one sequence move the logits of the next by",
    "stablelm": "StableLmAttention is not told where sequences end: its model drops arguments of the call",
}
"""Found by a few passes."""


ROUNDING = 3e-6
"""What float32 rounds in such a model, relative to its largest log-prob; CPUs do so differently. A wrong mask moves the first digit."""


def small(kind: str) -> Any:
    """A random model of a family, of the sizes above that its configuration has."""
    config_class = tf.CONFIG_MAPPING[kind]
    known = {name for c in config_class.__mro__ for name in getattr(c, "__annotations__", {})} | set(config_class.attribute_map)
    wanted = SIZES | LATENT if "kv_lora_rank" in known else SIZES
    sizes = {name: value for name, value in wanted.items() if name in known and not (name == "head_dim" and wanted is not SIZES)}
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(tf, name if isinstance(name, str) else name[0])(config_class(**sizes)).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def check(model: Any) -> None:
    check_packing(lambda **inputs: model(**inputs).logits, model.config, device=torch.device("cpu"), setting=SETTING)


@pytest.mark.parametrize("kind", PACKED)
@torch.no_grad()
def test_packed_exactly(kind: str) -> None:
    model = small(kind)
    assert packing_problem(model.config.to_dict()) == ""
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' sdpa drops the cap
    expected = logprobs_alone(model, sequences())
    use_our_attention(model, setting=SETTING)
    check(model)
    bound = ROUNDING * max(1.0, float(expected.abs().max()))
    assert float((logprobs_packed(model, sequences()) - expected).abs().max()) < bound


@pytest.mark.parametrize(("kind", "words"), BY_CONFIGURATION.items())
def test_refused_by_what_its_configuration_says(kind: str, words: str) -> None:
    assert packing_problem(tf.CONFIG_MAPPING[kind]().to_dict()) == words


@pytest.mark.parametrize("kind", BY_ATTENTION)
def test_refused_because_its_attention_is_its_own(kind: str) -> None:
    with pytest.raises(ModelError, match=rf"{SETTING}: \w+ computes attention by itself.*leave packing_samples out"):
        use_our_attention(small(kind), setting=SETTING)


@pytest.mark.parametrize(("kind", "words"), BY_CHECK.items())
def test_refused_by_a_few_passes(kind: str, words: str) -> None:
    model = small(kind)
    use_our_attention(model, setting=SETTING)
    with pytest.raises(ModelError, match=f"{SETTING}: models of type '{kind}' cannot be packed: .*leave packing_samples out") as caught:
        check(model)
    assert words in str(caught.value)


def test_a_model_that_gives_the_same_for_every_token_shows_nothing() -> None:
    """As a critic's new head does, all of whose values are 0: hidden states have to be looked at instead."""
    model = small("qwen3")
    use_our_attention(model, setting=SETTING)
    with pytest.raises(ModelError, match="does not depend on the tokens, so nothing can be seen"):
        check_packing(lambda **inputs: model(**inputs).logits * 0.0, model.config, device=torch.device("cpu"), setting=SETTING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_positions_that_do_not_start_again_are_found(dtype: torch.dtype) -> None:
    """Planted: a forward pass that counts on from one sequence to the next."""
    model = small("gpt2").to(dtype)
    use_our_attention(model, setting=SETTING)

    def counting_on(**inputs: Any) -> torch.Tensor:
        length = inputs["input_ids"].shape[1]
        logits: torch.Tensor = model(**inputs | {"position_ids": torch.arange(length)[None]}).logits
        return logits

    with pytest.raises(ModelError, match="depend by .* on its place in the row"):
        check_packing(counting_on, model.config, device=torch.device("cpu"), setting=SETTING)


def test_rounding_in_a_deep_model_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positions of a rotary model change nothing but the rounding, which in bfloat16 is far over that of float32."""
    config = tf.Qwen3Config(hidden_size=256, num_hidden_layers=28, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
                            intermediate_size=512, vocab_size=500, initializer_range=0.1)  # fmt: skip
    torch.manual_seed(0)
    model = tf.Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
    use_our_attention(model, setting=SETTING)

    def counting_on(**inputs: Any) -> torch.Tensor:
        length = inputs["input_ids"].shape[1]
        logits: torch.Tensor = model(**inputs | {"position_ids": torch.arange(length)[None]}).logits
        return logits

    check_packing(counting_on, model.config, device=torch.device("cpu"), setting=SETTING)
    monkeypatch.setitem(packing_check.ROUNDING, torch.bfloat16, packing_check.ROUNDING[torch.float32])
    with pytest.raises(ModelError, match="on its place in the row"):
        check_packing(counting_on, model.config, device=torch.device("cpu"), setting=SETTING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_segments_that_are_lost_are_found(dtype: torch.dtype) -> None:
    """Planted: one segment for the whole row."""
    model = small("qwen3").to(dtype)
    use_our_attention(model, setting=SETTING)

    def unpacked(**inputs: Any) -> torch.Tensor:
        length = inputs["input_ids"].shape[1]
        logits: torch.Tensor = model(**inputs | {"cu_seq_lens_q": torch.tensor([0, length], dtype=torch.int32)}).logits
        return logits

    with pytest.raises(ModelError, match="other tokens in one sequence move the logits of the next by"):
        check_packing(unpacked, model.config, device=torch.device("cpu"), setting=SETTING)
