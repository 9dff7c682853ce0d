"""Tiny random models of many families, for tests that hold for all of them: every parameter and saved buffer has a value that counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from lightrft.config.load import make_config
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing.judge import greedy_tokens
from lightrft.weights.buckets import saved_buffers

tf: Any = transformers  # its classes take their fields as keywords, unseen by type checkers

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    "max_position_embeddings": 256,
}  # fmt: skip
BLOCKS: dict[str, Any] = SMALL | {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
EXPERTS: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1}

YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


AS_THE_HUB: dict[str, Any] = {"rope_parameters": YARN, "scoring_func": "sigmoid", "moe_layer_freq": 1}
"""What DeepSeek-V3's own config.json has; transformers has no fields for the last two, and takes them so. vLLM and SGLang read them."""


def _deepseek_v3(*, kv_lora_rank: int = 32, qk_rope_head_dim: int = 32, **more: Any) -> Any:
    sizes = {"q_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
    sizes |= {"kv_lora_rank": kv_lora_rank, "qk_rope_head_dim": qk_rope_head_dim}
    fields = BLOCKS | {"num_key_value_heads": 2} | EXPERTS | {"n_group": 2, "topk_group": 1, "topk_method": "noaux_tc"} | sizes | more
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
    "deepseek-v3-latent": lambda: _deepseek_v3(kv_lora_rank=512, qk_rope_head_dim=64, **AS_THE_HUB),
    "glm4-moe": lambda: tf.Glm4MoeForCausalLM(tf.Glm4MoeConfig(**BLOCKS, **EXPERTS)),
    "minimax-m2": _minimax_m2,
    "apertus": lambda: tf.ApertusForCausalLM(tf.ApertusConfig(**BLOCKS)),
    "gemma4": _gemma4,
}
"""Families whose state dict has buffers: a router's bias, an activation's constants, a layer's scale."""


def _causal(name: str, **more: Any) -> Callable[[], Any]:
    """A family whose configuration takes the usual fields; None leaves one out."""
    config = getattr(tf, f"{name}TextConfig", None) or getattr(tf, f"{name}Config")
    fields = {key: value for key, value in (BLOCKS | more).items() if value is not None}
    return lambda: getattr(tf, f"{name}ForCausalLM")(config(**fields))


FEW_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
HYBRID: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
OLD = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
VISION = {"hidden_size": 32, "intermediate_size": 48, "patch_size": 4}


def _qwen_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    vision = VISION | {"depth": 2, "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [1], "window_size": 16}
    fields = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    return tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(text_config=BLOCKS | {"rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False, **fields)
    )


def _mistral_vl() -> Any:
    vision = VISION | {"model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "head_dim": 16}
    fields = {"image_token_index": 60, "tie_word_embeddings": False}
    return tf.Mistral3ForConditionalGeneration(
        tf.Mistral3Config(text_config=BLOCKS | {"model_type": "mistral"}, vision_config=vision, **fields)
    )


def _gemma3_vl() -> Any:
    vision = VISION | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    return tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(text_config=BLOCKS, vision_config=vision, mm_tokens_per_image=4, image_token_index=60)
    )


PLAIN: dict[str, Callable[[], Any]] = {
    "llama": _causal("Llama"),
    "mistral": _causal("Mistral", sliding_window=16),
    "qwen2": _causal("Qwen2", head_dim=None),
    "qwen3": _causal("Qwen3"),
    "gemma": _causal("Gemma"),
    "gemma2": _causal("Gemma2", query_pre_attn_scalar=32),
    "gemma3": _causal("Gemma3"),
    "phi": _causal("Phi", head_dim=None),
    "phi3": _causal("Phi3", head_dim=None),
    "olmo": _causal("Olmo", head_dim=None),
    "olmo2": _causal("Olmo2", head_dim=None),
    "olmo3": _causal("Olmo3", head_dim=None, sliding_window=16),
    "granite": _causal("Granite", head_dim=None),
    "stablelm": _causal("StableLm", head_dim=None),
    "starcoder2": _causal("Starcoder2", head_dim=None),
    "cohere": _causal("Cohere", head_dim=None),
    "cohere2": _causal("Cohere2", sliding_window=16),
    "nemotron": _causal("Nemotron"),
    "smollm3": _causal("SmolLM3", head_dim=None),
    "exaone4": _causal("Exaone4", sliding_window=16),
    "seed-oss": _causal("SeedOss"),
    "glm": _causal("Glm"),
    "glm4": _causal("Glm4"),
    "ernie4.5": _causal("Ernie4_5"),
    "hunyuan": _causal("HunYuanDenseV1"),
    "arcee": _causal("Arcee", head_dim=None),
    "helium": _causal("Helium"),
    "persimmon": _causal("Persimmon", head_dim=None),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**OLD, n_positions=256, n_embd=64, n_layer=2, n_head=2)),
    "gpt-neo": lambda: tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(**OLD, hidden_size=64, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=16)
    ),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SMALL, intermediate_size=96, num_attention_heads=2)),
    "gpt-j": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(**OLD, n_positions=256, n_embd=64, n_layer=2, n_head=2, rotary_dim=16)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**SMALL, ffn_dim=96, num_attention_heads=2, word_embed_proj_dim=64, do_layer_norm_before=True)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(**OLD, hidden_size=64, n_layer=2, n_head=2)),
    "falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(**SMALL, num_attention_heads=2)),
    "mpt": lambda: tf.MptForCausalLM(tf.MptConfig(**OLD, d_model=64, n_heads=2, n_layers=2, max_seq_len=256)),
    "mixtral": _causal("Mixtral", **LOCAL_EXPERTS),
    "qwen2-moe": _causal("Qwen2Moe", **FEW_EXPERTS, head_dim=None, shared_expert_intermediate_size=64),
    "qwen3-moe": _causal("Qwen3Moe", **FEW_EXPERTS),
    "olmoe": _causal("Olmoe", num_experts=4, num_experts_per_tok=2, head_dim=None, num_key_value_heads=2),  # as all of them
    "granite-moe": _causal("GraniteMoe", **LOCAL_EXPERTS),
    "phimoe": _causal("Phimoe", **LOCAL_EXPERTS, head_dim=None),
    "gpt-oss": _causal("GptOss", **LOCAL_EXPERTS, sliding_window=16),
    "llama4": _causal("Llama4", **LOCAL_EXPERTS, intermediate_size_mlp=96, attention_chunk_size=128),
    "hunyuan-moe": _causal("HunYuanMoEV1", num_experts=4, moe_topk=2),
    "qwen3-next": _causal(
        "Qwen3Next", **FEW_EXPERTS, layer_types=["linear_attention", "full_attention"], shared_expert_intermediate_size=64,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
    ),
    "mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(**SMALL, state_size=16)),
    "mamba2": lambda: tf.Mamba2ForCausalLM(tf.Mamba2Config(**SMALL, state_size=16, num_heads=4, head_dim=32, n_groups=1, chunk_size=16)),
    "lfm2": _causal("Lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, head_dim=None),
    "falcon-h1": _causal("FalconH1", **HYBRID, mamba_d_ssm=128),
    "bamba": _causal("Bamba", **HYBRID, attn_layer_indices=[1], head_dim=None),
    "granite-hybrid": _causal(
        "GraniteMoeHybrid", **HYBRID, **LOCAL_EXPERTS, shared_intermediate_size=64, layer_types=["mamba", "attention"], head_dim=None
    ),
    "qwen2.5-vl": _qwen_vl,
    "mistral3-vl": _mistral_vl,
    "gemma3-vl": _gemma3_vl,
}  # fmt: skip

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


PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10], [7, 8, 9], [11, 12, 13, 14]]


SYNCED = (0, 2, 3)
"""Seeds of the weights that an engine is given one after another; the folder's is 1."""


def family_row(name: str, folder: Path, *, engine: str, **settings: Any) -> dict[str, Any]:
    """An engine against transformers, with the folder's weights (seed 1) and after each of three syncs.

    Of log-probs of drawn tokens the largest difference, `before` and `after` (of all three); `greedy`: those of the four comparisons whose
    greedy tokens are others; `differing` and `unverified` tensors of any sync.
    """
    given = {"strategy": "single", "engine_type": engine, "model_name_or_path": str(folder), "prompt_max_len": 32, "generate_max_len": 16}
    config = make_config(given | settings)
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    try:
        actor, _ = strategy.prepare_trainable(make_family(name), optimizer=AdamWSettings(learning_rate=1e-3))
        judges = [make_family(name, seed=seed) for seed in (1, *SYNCED)]
        gaps, greedy = [engine_gap(strategy, judges[0])], [same_greedy_tokens(strategy, judges[0])]
        differing: list[str] = []
        unverified: list[str] = []
        for judge in judges[1:]:
            actor.load_state_dict(judge.state_dict())
            strategy.update_engine_weights(actor)
            unverified += strategy.unverified_weights
            differing += strategy.differing_engine_weights(actor) or []
            gaps.append(engine_gap(strategy, judge))
            greedy.append(same_greedy_tokens(strategy, judge))  # and to sleep again
    finally:
        strategy.shutdown()
    wrong = [at for at, same in enumerate(greedy) if not same]
    return {"before": gaps[0], "after": max(gaps[1:]), "greedy": wrong, "differing": differing, "unverified": unverified}


def same_greedy_tokens(strategy: StrategyBase, judge: Any) -> bool:
    """Whether the engine's are those of transformers' own `generate`."""
    outputs = strategy.gather_and_generate({"temperature": 0.0, "max_new_tokens": 8}, all_prompt_token_ids=PROMPTS)
    found = [list(output.completions[0].token_ids) for output in outputs]
    return found == [greedy_tokens(judge, prompt, max_new_tokens=8) for prompt in PROMPTS]


@torch.no_grad()
def engine_gap(strategy: StrategyBase, judge: Any) -> float:
    """Largest over the tokens of two samples of each prompt, against the row alone. The engine stays awake."""
    sampling = {"temperature": 1.0, "max_new_tokens": 8, "n": 2}
    worst = 0.0
    for output in strategy.gather_and_generate(sampling, all_prompt_token_ids=PROMPTS, logprobs=True, sleep_engine=False):
        for completion in output.completions:
            ids = [*output.prompt_token_ids, *completion.token_ids]
            logprobs = judge(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            first = len(output.prompt_token_ids) - 1
            assert completion.logprobs is not None
            pairs = enumerate(zip(completion.token_ids, completion.logprobs, strict=True))
            worst = max(worst, *(abs(float(logprobs[first + i, token]) - found) for i, (token, found) in pairs))
    return worst
