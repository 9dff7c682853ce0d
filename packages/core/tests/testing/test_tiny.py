"""The tiny models are real, reproducible and loadable; the tokenizer gives back what it was given."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.testing import fake_strategy, spmd, spmd_rank, tiny, workload
from lightrft.testing.tiny import ALPHABET, Family, tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.testing.workload import ragged_rows, split_rows


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("tie", [False, True])
def test_models_are_reproducible_with_heads_of_32(family: Family, tie: bool) -> None:
    state = torch.get_rng_state()
    one, same, other = (tiny_causal_lm(seed=seed, hidden=96, heads=2, kv_heads=1, tie=tie, family=family) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights, others = dict(one.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in same.named_parameters())
    assert not torch.equal(weights["model.embed_tokens.weight"], others["model.embed_tokens.weight"])
    assert {p.dtype for p in weights.values()} == {torch.float32}
    assert one.model.layers[0].self_attn.head_dim == 32
    assert one.model.layers[0].self_attn.k_proj.weight.shape == (32, 96)
    assert (one.lm_head.weight is one.model.embed_tokens.weight) == tie
    assert one(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 64)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="family='gpt'; possible: qwen3, qwen2, llama"):
        tiny_causal_lm(family="gpt")  # type: ignore[arg-type]


def test_the_tokenizer_is_one_token_for_a_character() -> None:
    tokenizer = tiny_tokenizer("0123456789 =\n")
    ids = tokenizer("31 =\n")["input_ids"]
    assert ids == [6, 4, 13, 14, 15]
    assert tokenizer.decode([*ids, 1], skip_special_tokens=True) == "31 =\n"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 16)
    assert tokenizer("3x")["input_ids"] == [6, 2]
    with pytest.raises(ValueError, match="characters twice: 'a'"):
        tiny_tokenizer("aba")


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_folder_loads_with_the_same_weights(tmp_path: Path, family: Family) -> None:
    folder = tiny_model_folder(tmp_path / "m", family=family, seed=2, hidden=96)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = dict(tiny_causal_lm(family=family, seed=2, hidden=96).named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in loaded.named_parameters())
    assert loaded.generation_config.eos_token_id == 1
    if family != "qwen2":  # see `tiny_model_folder`
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer(ALPHABET)["input_ids"]) == ALPHABET


def test_a_vocabulary_too_small_for_the_alphabet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"the alphabet needs {len(ALPHABET) + 3} tokens, vocab_size=8"):
        tiny_model_folder(tmp_path / "n", vocab_size=8)


def test_batches_are_cut_unevenly_and_lose_no_row() -> None:
    rows = ragged_rows(1)
    parts = split_rows(rows, world_size=4, num_micro=3)
    assert sorted(id(row) for rank in parts for micro in rank for row in micro) == sorted(map(id, rows))
    assert len({sum(row.num_counted for micro in rank for row in micro) for rank in parts}) == 4
    assert any(not micro for rank in parts for micro in rank)


@pytest.mark.parametrize("module", [spmd, spmd_rank, tiny, workload, fake_strategy])
def test_the_kit_does_not_need_pytest(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported and not any(name.split(".")[0] in ("pytest", "_pytest") for name in imported)
