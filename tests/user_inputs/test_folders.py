"""Model folders as users bring them: each is taken as what it is, or refused in one line before a rank starts, with what to do."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
)
from user_inputs.folder_cases import CASES, OWN_CODE, TAKEN, WEIGHTS, as_bin, both, text, truncated, weights

from lightrft.config.load import make_config
from lightrft.models.folder_check import folder_problem
from lightrft.models.load import open_causal_lm
from lightrft.plugins.registry import Registry
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.tiny import tiny_model_folder, tiny_reward_folder
from lightrft.trainer.preflight import preflight_problems

IDS = torch.arange(3, 30)[None]
ENGINE = "vllm" if find_spec("vllm") else "hf"
"""In vLLM's environment the same is asked of runs with vLLM."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("whole") / "m", family="llama")


@pytest.fixture
def folder(tmp_path: Path, whole: Path, request: pytest.FixtureRequest) -> Path:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    CASES[request.getfixturevalue("name")].change(made)
    return made


def found_before_ranks(folder: Path, tmp_path: Path, **settings: Any) -> list[str]:
    """What every door says before a model loads."""
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "7+7=", "answer": "14"}\n')
    values = {"strategy": "single", "engine_type": ENGINE, "model_name_or_path": str(folder), "prompt_data": str(data)}
    values |= {
        "output_dir": str(tmp_path / "run"),
        "rollout_batch_size": 1,
        "train_batch_size": 8,
        "prompt_max_len": 32,
        "generate_max_len": 8,
    }
    return preflight_problems(make_config(values | settings), mode="train", registry=Registry.discover(), world_size=1)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_taken_or_refused_before_ranks_start(tmp_path: Path, folder: Path, name: str) -> None:
    found = found_before_ranks(folder, tmp_path, trust_remote_code=CASES[name].trust_remote_code)
    if not CASES[name].refused:
        assert found == []
        return
    [line] = found
    assert line.startswith(f"model_name_or_path={str(folder)!r}") and "\n" not in line
    assert all(words in line for words in CASES[name].refused), line


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_has_the_values_of_transformers(tmp_path: Path, folder: Path, name: str) -> None:
    trust = CASES[name].trust_remote_code
    expected: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust).eval()
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(folder, dtype=torch.float32, trust_remote_code=trust)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    with torch.no_grad():
        assert torch.equal(actor(IDS).logits, expected(IDS).logits)
        strategy.save_model(actor, tmp_path / "saved")
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32, trust_remote_code=trust)
        assert torch.equal(again(IDS).logits, expected(IDS).logits)
    strategy.shutdown()


@pytest.mark.parametrize("path", ["./nope", "nope", "a/b/c", "/no/where", "../m"])
def test_one_rule_for_a_path_that_is_not_there(tmp_path: Path, whole: Path, path: str) -> None:
    words = "no such folder, and not a hub name of the form owner/name"
    critic = {"advantage_estimator": "gae", "critic_model_name_or_path": path}
    assert found_before_ranks(whole, tmp_path, **critic) == [f"critic_model_name_or_path={path!r}: {words}"]
    assert found_before_ranks(whole, tmp_path, reward=[f"model:{path}"]) == [f"reward='model:{path}': {words}"]
    assert found_before_ranks(Path(path), tmp_path, model_name_or_path=path) == [f"model_name_or_path={path!r}: {words}"]


@pytest.mark.parametrize(
    ("file", "words"), [("modeling_own.py", "gives no model: SystemExit: 3"), ("configuration_own.py", "cannot be used: SystemExit: 3")]
)
def test_own_code_that_ends_the_process_is_told(tmp_path: Path, whole: Path, file: str, words: str) -> None:
    made = Path(shutil.copytree(whole, tmp_path / file.replace(".", "_")))  # transformers keeps code by the name of its folder
    both(OWN_CODE, text(file, "raise SystemExit(3)\n"))(made)
    [line] = found_before_ranks(made, tmp_path, trust_remote_code=True)
    assert words in line


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_is_a_policy_only_as_a_decoder(tmp_path: Path, whole: Path, is_decoder: bool) -> None:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    (made / WEIGHTS).unlink()
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertLMHeadModel(BertConfig(vocab_size=64, pad_token_id=0, eos_token_id=1, is_decoder=is_decoder, **sizes)).save_pretrained(made)
    found = found_before_ranks(made, tmp_path)
    assert found == [] if is_decoder else "is that of an encoder (bert), which reads in both directions" in found[0]


def test_a_model_that_takes_no_text_without_an_image_is_refused(tmp_path: Path, whole: Path) -> None:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    (made / WEIGHTS).unlink()
    layers = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = OPTConfig(vocab_size=64, hidden_size=64, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=64)
    config = Blip2Config(
        text_config=text, qformer_config=layers | {"vocab_size": 64}, vision_config=layers | {"image_size": 28, "patch_size": 14},
        num_query_tokens=4, image_token_index=5, image_text_hidden_size=32,
    )  # fmt: skip
    Blip2ForConditionalGeneration(config).save_pretrained(made)
    assert "Blip2ForConditionalGeneration takes no text without an image" in found_before_ranks(made, tmp_path)[0]


def test_folders_of_critic_and_reward_models_are_looked_at_too(tmp_path: Path, whole: Path) -> None:
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    truncated(WEIGHTS, 30_000)(broken)
    critic = {"advantage_estimator": "gae", "critic_model_name_or_path": str(broken)}
    [line] = found_before_ranks(whole, tmp_path, **critic)
    assert line.startswith("critic_model_name_or_path=") and "is cut off" in line
    [line] = found_before_ranks(whole, tmp_path, reward=[f"rm=model:{broken}"])
    assert line.startswith(f"reward='rm=model:{broken}'") and "is cut off" in line
    [line] = found_before_ranks(whole, tmp_path, reward=[f"model:{whole}"])
    assert "lack score.weight" in line, "a causal model is no sequence classifier"
    assert found_before_ranks(whole, tmp_path, reward=[f"model:{tiny_reward_folder(tmp_path / 'rm')}"]) == []
    assert "lm_head.weight" in folder_problem("m", str(tmp_path / "rm"))
    assert folder_problem("m", str(tmp_path / "rm"), auto_class=AutoModelForSequenceClassification) == ""


def test_a_token_beyond_the_embedding_is_told_with_its_row(tmp_path: Path, whole: Path) -> None:
    from transformers import AutoTokenizer

    made = Path(shutil.copytree(whole, tmp_path / "m"))
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.add_tokens([f"<|new{i}|>" for i in range(64)])
    tokenizer.save_pretrained(made)
    assert found_before_ranks(made, tmp_path) == [], "tokens that no prompt holds"
    (tmp_path / "new.jsonl").write_text('{"prompt": "7", "answer": "1"}\n{"prompt": "<|new63|>7", "answer": "1"}\n')
    [line] = found_before_ranks(made, tmp_path, prompt_data=str(tmp_path / "new.jsonl"))
    assert "new.jsonl:2: the prompt has token" in line and "('<|new63|>'), and the model's embedding has 64 rows" in line


@pytest.mark.parametrize("family", ["mixtral", "gpt-neox", "granite-moe", "gemma3", "gpt2", "deepseek-v3", "gemma4", "apertus"])
def test_no_false_alarm_for_a_whole_folder_of_any_family(tmp_path: Path, family: str) -> None:
    make_family(family).save_pretrained(tmp_path)
    assert folder_problem("m", str(tmp_path)) == ""


def test_masks_of_older_versions_are_no_weights(tmp_path: Path) -> None:
    make_family("gpt2").save_pretrained(tmp_path)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}
    weights(lambda state: state | masks)(tmp_path)
    assert folder_problem("m", str(tmp_path)) == ""


def test_dtypes_of_torch_s_own_format_are_those_of_the_saved_folder(tmp_path: Path, whole: Path) -> None:
    made = Path(shutil.copytree(whole, tmp_path / "m"))
    as_bin(lambda state: {name: t.bfloat16() for name, t in state.items()})(made)
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(made, dtype=torch.float32)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    strategy.save_model(actor, tmp_path / "saved", source=made)
    strategy.shutdown()
    assert {t.dtype for t in load_file(tmp_path / "saved" / WEIGHTS).values()} == {torch.bfloat16}


def test_an_expert_that_is_missing_is_told(tmp_path: Path) -> None:
    make_family("mixtral").save_pretrained(tmp_path)
    lost = next(name for name in load_file(tmp_path / WEIGHTS) if "experts.3" in name)
    weights(lambda state: state.pop(lost) is None)(tmp_path)
    assert "weight files lack model.layers.0.mlp.experts" in folder_problem("m", str(tmp_path))


def test_a_tied_model_of_save_pretrained_is_whole(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                                 tie_word_embeddings=True)).save_pretrained(tmp_path)  # fmt: skip
    assert folder_problem("m", str(tmp_path)) == ""


def test_adapters_that_a_model_cannot_have_are_told_before_ranks_start(tmp_path: Path, whole: Path) -> None:
    assert found_before_ranks(whole, tmp_path, lora_rank=2) == []
    [line] = found_before_ranks(whole, tmp_path, lora_rank=2, lora_target_modules=["c_attn"])
    assert "LlamaForCausalLM has no linear layer called c_attn" in line


def test_a_pattern_that_freezes_nothing_or_everything_is_told_before_ranks_start(tmp_path: Path, whole: Path) -> None:
    assert found_before_ranks(whole, tmp_path, freeze=r"layers\.0\.|lm_head") == []
    assert found_before_ranks(whole, tmp_path, freeze=r"layers\.0\.", lora_rank=2) == []
    [line] = found_before_ranks(whole, tmp_path, freeze="q_prj")
    assert line.startswith("freeze='q_prj' matches no name of a parameter that LlamaForCausalLM trains (lm_head.weight, ")
    assert line.endswith("; did you mean 'q_proj'?") and "\n" not in line
    [line] = found_before_ranks(whole, tmp_path, freeze="weight$")
    assert line.startswith("freeze='weight$' matches every parameter that LlamaForCausalLM trains")
    [line] = found_before_ranks(whole, tmp_path, freeze="embed", lora_rank=2)
    assert "matches no name of a parameter that LlamaForCausalLM trains (model.layers.0.mlp" in line  # adapters alone are trained
    [line] = found_before_ranks(Path(""), tmp_path, freeze="visual", model_name_or_path="", scratch_tokenizer="char")
    assert line.startswith("freeze='visual' matches no name of a parameter that Qwen3ForCausalLM trains (")
