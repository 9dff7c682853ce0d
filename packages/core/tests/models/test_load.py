"""Loading a model and a tokenizer: what is whole loads, and whatever is missing is named in one line."""

from __future__ import annotations

import json

import pytest
import torch

from lightrft.errors import ModelError
from lightrft.models.load import load_causal_lm, load_tokenizer
from lightrft.models.scratch import char_tokenizer, scratch_model


@pytest.fixture
def folder(tmp_path):
    tokenizer = char_tokenizer(["0123456789 ="])
    tokenizer.save_pretrained(tmp_path)
    scratch_model(tokenizer, layers=1, hidden=16, heads=2, kv_heads=2, seed=0).save_pretrained(tmp_path)
    return tmp_path


def refusal(load) -> str:
    with pytest.raises(ModelError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_folder_loads(folder, dtype):
    model = load_causal_lm(folder, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config.use_cache is False
    assert load_tokenizer(str(folder))("3 1").input_ids == char_tokenizer(["0123456789 ="])("3 1").input_ids


def test_no_folder(tmp_path):
    for load in (lambda p: load_causal_lm(p, dtype=torch.float32), load_tokenizer):
        assert "no such folder, and not a hub name" in refusal(lambda load=load: load(tmp_path / "nothing"))


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert refusal(lambda: load_causal_lm(folder, dtype=torch.float32)).endswith(
        "has no config.json; give a folder written by save_pretrained"
    )


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights; expected *.safetensors" in refusal(lambda: load_causal_lm(folder, dtype=torch.float32))


def test_damaged_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    message = refusal(lambda: load_causal_lm(folder, dtype=torch.float32))
    assert message.startswith(f"model {str(folder)!r} cannot be loaded: SafetensorError")


def test_weights_that_lack_a_parameter_are_not_filled_with_random_numbers(folder):
    change_config(folder, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    message = refusal(lambda: load_causal_lm(folder, dtype=torch.float32))
    assert "its weight files lack model.layers.1.input_layernorm.weight" in message
    assert "and 8 more" in message


def test_a_config_that_transformers_does_not_know(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert "no-such-model" in refusal(lambda: load_causal_lm(folder, dtype=torch.float32))


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{")
    assert "JSON" in refusal(lambda: load_causal_lm(folder, dtype=torch.float32))


def test_no_tokenizer_is_not_an_empty_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer; save one there with tokenizer.save_pretrained" in refusal(lambda: load_tokenizer(folder))


def test_a_tokenizer_without_end(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    assert "has no end-of-sequence token" in refusal(lambda: load_tokenizer(folder))


def test_a_tokenizer_without_pad_pads_with_its_end(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    assert load_tokenizer(folder).pad_token_id == load_tokenizer(folder).eos_token_id == 1
