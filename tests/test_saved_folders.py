"""A saved folder is what `save_pretrained` would write, with all that lay beside the weights it came from, and loads as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import make_family
from safetensors.torch import load_file, save_file
from small_run import write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.config.load import make_config
from lightrft.errors import CheckpointError, PeerError
from lightrft.models.load import open_causal_lm
from lightrft.strategy import get_strategy, hf_export
from lightrft.strategy.strategy_base import AdamWSettings, StrategyBase
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_causal_lm, tiny_model_folder, tiny_tokenizer
from lightrft.trainer.run import train

IDS = torch.arange(3, 30)[None]
RENAMED = ("mixtral", "qwen3-moe", "gpt-neox", "granite-moe", "deepseek-v3", "minimax-m2", "gemma3", "gpt2")
"""Families whose modules have other names than their files, and some whose have not."""


def saved(strategy: StrategyBase, model: Any, folder: Path, **given: Any) -> dict[str, torch.Tensor]:
    strategy.save_model(model, folder, **given)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("family", RENAMED)
def test_names_are_those_of_save_pretrained(tmp_path: Path, family: str) -> None:
    make_family(family).save_pretrained(tmp_path / "expected")
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(tmp_path / "expected", dtype=torch.float32)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    found = saved(strategy, actor, tmp_path / "saved")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype for name, tensor in found.items())
    strategy.shutdown()


def on_two_ranks(folder: str, settings: dict[str, Any]) -> None:
    strategy = get_strategy(make_config(settings))
    for family in ("mixtral", "gemma3"):
        source = Path(folder) / family
        opened = open_causal_lm(source, dtype=torch.float32)
        actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
        out = Path(folder) / f"{family}-{'-'.join(settings)}"
        strategy.save_model(actor, out)
        expected, found = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    strategy.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"fsdp": True}, id="fsdp"),
        pytest.param({"zero_stage": 3}, id="zero 3"),
        pytest.param({"zero_stage": 2}, id="zero 2", marks=pytest.mark.long),
    ],
)
def test_two_ranks_save_the_same_names(tmp_path: Path, settings: dict[str, Any]) -> None:
    for family in ("mixtral", "gemma3"):
        make_family(family).save_pretrained(tmp_path / family)
    run_spmd(on_two_ranks, 2, str(tmp_path), settings)


def source_of(path: Path) -> Path:
    """bfloat16 with one float32 tensor, a KV cache in the configuration, and files of every kind beside the weights."""
    folder = tiny_model_folder(path, family="llama")
    state = {name: t if "norm" in name else t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_cache": True, "dtype": "bfloat16"}))
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [1, 7], "temperature": 0.6}'
    )  # not sampled: refused by save_pretrained
    (folder / "preprocessor_config.json").write_text('{"size": 4}')
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "adapter_notes.bin").write_bytes(b"weights of something else")
    return folder


def test_what_lay_beside_the_weights_comes_along(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(source, dtype=torch.float32)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    found = saved(strategy, actor, tmp_path / "saved", tokenizer=AutoTokenizer.from_pretrained(source))
    expected = load_file(source / "model.safetensors")
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in expected.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    for name in ("generation_config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (source / name).read_bytes(), name
    assert not (tmp_path / "saved" / "adapter_notes.bin").exists()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["use_cache"] is True and config["dtype"] == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "7+7"}], tokenize=False) == "7+7"
    strategy.shutdown()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_save_dtype_is_that_of_every_tensor(tmp_path: Path, dtype: str) -> None:
    source = source_of(tmp_path / "source")
    strategy = get_strategy(make_config({"strategy": "single", "save_dtype": dtype}))
    opened = open_causal_lm(source, dtype=torch.float32)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    assert {t.dtype for t in saved(strategy, actor, tmp_path / "saved").values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == dtype
    strategy.shutdown()


def with_own_code(path: Path) -> Path:
    """A folder whose model is a class of its own, in two files and a package."""
    folder = tiny_model_folder(path, family="llama")
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_of_its_own_code_is_saved_with_it(tmp_path: Path) -> None:
    source = with_own_code(tmp_path / "source")
    strategy = get_strategy(make_config({"strategy": "single"}))
    opened = open_causal_lm(source, dtype=torch.float32, trust_remote_code=True)
    actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
    strategy.save_model(actor, tmp_path / "saved", tokenizer=tiny_tokenizer())
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, tiny_causal_lm(family="llama")(IDS).logits)
    strategy.shutdown()


def refused_on_ranks(folder: str) -> tuple[str, str]:
    strategy = get_strategy(make_config({"fsdp": True}))
    actor, _ = strategy.prepare_trainable(tiny_causal_lm(), optimizer=AdamWSettings(learning_rate=1e-3))
    strategy.unwrap(actor).generation_config.temperature = 0.6  # without do_sample
    try:
        strategy.save_model(actor, Path(folder) / "saved")
    except (CheckpointError, PeerError) as error:
        found = type(error).__name__, str(error)
    strategy.shutdown()
    return found


def test_a_save_that_a_library_refuses_fails_on_all_ranks_together(tmp_path: Path) -> None:
    first, second = run_spmd(refused_on_ranks, 2, str(tmp_path))
    assert first[0] == "CheckpointError" and "temperature" in first[1] and "unchanged" in first[1]
    assert second[0] == "PeerError" and "rank 0" in second[1]
    assert list(tmp_path.iterdir()) == []


def run_that_cannot_save(recipe: str) -> str:
    """A run whose last save is refused on rank 0, as a library refuses it."""
    config = make_config(yaml.safe_load(Path(recipe).read_text(encoding="utf-8")))

    def refuse(*_given: Any) -> None:
        raise ValueError("planted: this cannot be written")

    hf_export._write = refuse
    try:
        train(config)
    except (CheckpointError, PeerError) as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


@pytest.mark.slow
def test_a_final_save_that_fails_leaves_a_checkpoint_on_two_ranks(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, micro_train_batch_size=4)
    first, second = run_spmd(run_that_cannot_save, 2, str(recipe), timeout_s=200)
    assert first.startswith("CheckpointError: saving") and "planted: this cannot be written" in first
    assert second.startswith("PeerError")
    assert (tmp_path / "run" / "checkpoints" / "step-2" / "actor").is_dir()
    assert not (tmp_path / "run" / "model").exists()
