"""Weights leave for an engine under the names that its model folder has, and complete."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lightrft.errors import ModelError
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder
from lightrft.weights.buckets import Weight, tied_names
from lightrft.weights.hf_names import FileNames
from lightrft.weights.manifest import expected_shapes


@pytest.mark.parametrize("tie", [False, True])
def test_a_plain_model_passes_as_it_is(tmp_path: Path, tie: bool) -> None:
    expected = expected_shapes(str(tiny_model_folder(tmp_path, tie=tie)))
    assert ("lm_head.weight" in expected) is not tie
    names = FileNames(str(tmp_path), expected)
    assert names.module_shapes() == expected
    model = tiny_causal_lm(tie=tie)
    known = tied_names(model)
    bucket = [Weight(known[name], p.detach()) for name, p in model.named_parameters()]
    assert names.convert(bucket) == bucket


def test_a_folder_without_safetensors_says_nothing(tmp_path: Path) -> None:
    assert expected_shapes(str(tmp_path)) == {}


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    weights = tiny_model_folder(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="its safetensors cannot be read"):
        expected_shapes(str(tmp_path))


def test_stacked_experts_leave_under_the_names_of_the_files(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path)
    expected = expected_shapes(str(tmp_path))
    names = FileNames(str(tmp_path), expected)
    assert names.module_shapes() == {name: tuple(p.shape) for name, p in model.named_parameters()} != expected
    bucket = [Weight((name,), p.detach()) for name, p in model.named_parameters()]
    converted = {w.names[0]: w.tensor for w in names.convert(bucket)}
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == expected
    stacked = model.model.layers[0].mlp.experts.gate_up_proj.detach()
    torch.testing.assert_close(converted["model.layers.0.mlp.experts.2.gate_proj.weight"], stacked[2, :32])
    torch.testing.assert_close(converted["model.layers.0.mlp.experts.3.up_proj.weight"], stacked[3, 32:])


@pytest.mark.parametrize("prefix", [True, False], ids=["with its prefix", "as on the hub"])
def test_what_a_pattern_of_ignored_names_finds_in_the_models_own_is_needed(tmp_path: Path, prefix: bool) -> None:
    """transformers ignores GPT-2's `attn.bias`, a mask of older versions; the pattern is found in `c_attn.bias` too."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    held = load_file(file) | {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32), "transformer.h.0.attn.masked_bias": torch.ones(())}
    save_file({name if prefix else name.removeprefix("transformer."): t for name, t in held.items()}, file, {"format": "pt"})
    names = FileNames(str(tmp_path), expected_shapes(str(tmp_path)))
    known = tied_names(model)
    bucket = names.convert([Weight(known[name], p.detach()) for name, p in model.named_parameters()])
    sent = {name for weight in bucket for name in weight.names}
    assert "h.0.attn.c_attn.bias" in {name.removeprefix("transformer.") for name in sent}
    assert names.needed() == sent - {"lm_head.weight"}
