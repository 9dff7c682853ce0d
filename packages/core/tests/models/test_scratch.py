"""Tokenizers and models made on the spot: texts come back, models repeat, folders load."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.errors import ModelError
from lightrft.models.scratch import bpe_tokenizer, char_tokenizer, scratch_model

TEXTS = ["3 1 4 =\n1 3 4", "a  , b . c's  \t 'd' n't", "é 日本 2024 #### -1,000"]


def test_characters_are_sorted_after_pad_and_end():
    tokenizer = char_tokenizer(["ba", "1 a"])
    assert tokenizer.get_vocab() == {"<|pad|>": 0, "<|end|>": 1, " ": 2, "1": 3, "a": 4, "b": 5}
    assert tokenizer("ab 1").input_ids == [4, 5, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_back_exactly(text):
    tokenizer = char_tokenizer(TEXTS)
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, 1, 0, 0], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", [*TEXTS, "never seen: ÿ 🙂", " x", "\n\n"])
def test_bpe_comes_back_exactly(text):
    tokenizer = bpe_tokenizer(TEXTS * 3, vocab_size=280)
    assert tokenizer.decode([*tokenizer(text).input_ids, 1, 0], skip_special_tokens=True) == text


def test_bpe_learns_words_and_keeps_digits_single():
    tokenizer = bpe_tokenizer(["sold 48 clips", "sold 4848 clips"] * 10, vocab_size=300)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("sold 4848 clips").input_ids)
    assert [t for t in tokens if any(c.isdigit() for c in t)] == ["4", "8", "4", "8"]
    assert tokens[0] == "sold"
    assert len(tokenizer) <= 300


@pytest.mark.parametrize("make", [char_tokenizer, lambda texts: bpe_tokenizer(texts, vocab_size=300)])
def test_texts_that_make_no_tokenizer(make):
    with pytest.raises(ModelError, match="found none"):
        make(["", ""])
    with pytest.raises(ModelError, match=r"text 1 holds '<\|end\|>'"):
        make(["a", "b<|end|>"])


def test_bpe_needs_room_for_all_bytes():
    with pytest.raises(ModelError, match="vocab_size=257.*at least 258"):
        bpe_tokenizer(["a"], vocab_size=257)


def make(*, seed: int):
    return scratch_model(char_tokenizer(["0123456789 ="]), layers=2, hidden=32, heads=4, kv_heads=2, seed=seed)


def test_a_model_repeats_by_seed_and_leaves_the_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = make(seed=0).state_dict(), make(seed=0).state_dict(), make(seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_model_is_what_was_asked_for():
    model = make(seed=0)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim, config.intermediate_size) == (2, 32, 8, 96)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 4096)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for holder in (config, model.generation_config):
        assert (holder.pad_token_id, holder.eos_token_id) == (0, 1)


@pytest.mark.parametrize("sizes", [{"hidden": 36, "heads": 4, "kv_heads": 2}, {"hidden": 32, "heads": 4, "kv_heads": 3}])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="hidden must be a multiple of 2 x heads, heads of kv_heads"):
        scratch_model(char_tokenizer(["a"]), layers=1, seed=0, **sizes)


def test_a_saved_folder_loads_with_the_auto_classes(tmp_path):
    tokenizer, model = char_tokenizer(["0123456789 ="]), make(seed=3)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "3 1 4 ="
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text
    assert (again.pad_token_id, again.eos_token_id, len(again)) == (0, 1, len(tokenizer))
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, model.eval()(ids).logits)
