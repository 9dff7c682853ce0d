"""Loading a model and a tokenizer: what is whole loads, and whatever is missing is named in one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from lightrft.errors import ModelError
from lightrft.models.load import load_causal_lm, load_tokenizer, open_causal_lm, parameters_on_meta
from lightrft.models.scratch import char_tokenizer, scratch_model
from lightrft.testing.tiny import tiny_causal_lm


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
    assert "has no weights; expected model.safetensors" in refusal(lambda: load_causal_lm(folder, dtype=torch.float32))


def test_damaged_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    message = refusal(lambda: load_causal_lm(folder, dtype=torch.float32))
    assert message.startswith(f"model={str(folder)!r}: model.safetensors is damaged: 500 bytes")


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


@pytest.mark.parametrize("tie", [False, True])
def test_an_opened_model_has_no_values_until_it_is_filled_and_then_is_the_loaded_one(tmp_path, tie):
    tiny_causal_lm(seed=3, tie=tie).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    opened = open_causal_lm(tmp_path, dtype=torch.bfloat16)
    assert {p.device.type for p in opened.model.parameters()} == {"meta"} and opened.whole_because == ""
    opened.weights.fill(opened.model)
    loaded = load_causal_lm(tmp_path, dtype=torch.bfloat16).state_dict()
    found = opened.model.state_dict()
    assert found.keys() == loaded.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in loaded.items())
    assert (opened.model.lm_head.weight is opened.model.model.embed_tokens.weight) is tie
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(opened.model.eval()(ids).logits, load_causal_lm(tmp_path, dtype=torch.bfloat16).eval()(ids).logits)


def test_files_with_other_names_are_loaded_whole_and_it_is_said(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({f"model.{name}" if not name.startswith("model.") else name: t for name, t in tensors.items()}, folder / "model.safetensors")
    change_config(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(lambda: open_causal_lm(folder, dtype=torch.float32))


def test_files_that_are_no_safetensors_are_loaded_whole_and_it_is_said(folder):
    expected = load_causal_lm(folder, dtype=torch.float32).state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    opened = open_causal_lm(folder, dtype=torch.float32)
    assert opened.weights is None and opened.whole_because == "it has no *.safetensors"
    assert all(torch.equal(opened.model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_other_classes_of_models_open_too(tmp_path):
    config = tiny_causal_lm().config
    config.num_labels = 1
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.save_pretrained(tmp_path)
    opened = open_causal_lm(tmp_path, dtype=torch.float32, auto_class=AutoModelForSequenceClassification)
    opened.weights.fill(opened.model)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(opened.model.eval()(ids).logits, classifier.eval()(ids).logits)


def test_parameters_go_to_the_meta_device_inside_only():
    with parameters_on_meta():
        assert torch.nn.Linear(2, 2).weight.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta
