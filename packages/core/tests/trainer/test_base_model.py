"""The run's base model: as it is, made, warmed up; what is saved loads and repeats."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from lightrft.config.load import make_config
from lightrft.errors import DataError, ModelError
from lightrft.models import load
from lightrft.models.load import load_causal_lm, load_tokenizer
from lightrft.plugins.registry import Registry
from lightrft.trainer.base_model import prepare_base_model, target_text

ROWS = [{"prompt": f"{a}+{b}=", "answer": f"<<{a}{b}>>{a + b}"} for a in range(5) for b in range(5)]


@pytest.fixture
def settings(tmp_path):
    """Settings of a scratch model on additions; changes win."""
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {
        "prompt_data": str(tmp_path / "train.jsonl"),
        "eval_data": str(tmp_path / "eval.jsonl"),
        "scratch_tokenizer": "char",
        "scratch_layers": 1,
        "scratch_hidden": 32,
        "scratch_heads": 2,
        "scratch_kv_heads": 2,
        "generate_max_len": 4,
        "sft_strip": "<<.*?>>",
        "sft_batch_size": 25,
        "sft_learning_rate": 1e-2,
        "seed": 3,
    }
    return lambda **changes: make_config(values | changes)


def prepare(config, folder: Path) -> tuple[Path, list[str]]:
    lines: list[str] = []
    path = prepare_base_model(config, folder=folder, registry=Registry.discover(), log=lines.append)
    return path, lines


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_causal_lm(folder, dtype=torch.float32).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_to_load_stays_where_it_is(settings, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "config.json").write_text("{}")
    monkeypatch.setattr(load, "snapshot_download", lambda name, **_: str(kept))
    config = settings(scratch_tokenizer="none", model_name_or_path="owner/name")
    assert prepare(config, tmp_path / "base") == (Path("owner/name"), [])
    assert not (tmp_path / "base").exists()
    (kept / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(ModelError, match="'owner/name' is quantised; download it"):
        prepare(config, tmp_path / "base")


def test_a_made_model_knows_the_data_and_repeats(settings, tmp_path):
    path, lines = prepare(settings(prompt_template="{prompt}?"), tmp_path / "one")
    assert path == tmp_path / "one"
    assert set(load_tokenizer(path).get_vocab()) == {"<|pad|>", "<|end|>", *"0123456789+=?"} - {"9"}
    assert lines[0].endswith("a char tokenizer of 14 tokens")
    assert same(weights(path), weights(prepare(settings(), tmp_path / "same")[0])) is False  # another vocabulary
    assert same(weights(path), weights(prepare(settings(prompt_template="{prompt}?"), tmp_path / "two")[0]))


def test_characters_of_the_evaluation_are_known_too(settings, tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "z=", "answer": "9"}) + "\n")
    assert {"z", "9"} <= set(load_tokenizer(prepare(settings(), tmp_path / "base")[0]).get_vocab())


def test_bpe(settings, tmp_path):
    path, _ = prepare(settings(scratch_tokenizer="bpe", scratch_vocab_size=260, prompt_template="sum of {prompt}"), tmp_path / "base")
    assert len(load_tokenizer(path)) == 260
    assert load_causal_lm(path, dtype=torch.float32).config.vocab_size == 260


@pytest.mark.parametrize(("ranks", "cores", "expected"), [(1, 8, 2), (3, 8, 6), (3, 4, 4)])
def test_the_threads_of_all_ranks_are_used_and_given_back(settings, tmp_path, monkeypatch, ranks, cores, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    if sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
    asked: list[int] = [2]
    seen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    prepare_base_model(settings(), folder=tmp_path / "base", registry=Registry.discover(), log=lambda line: seen.append(asked[-1]))
    assert seen == [expected]
    assert asked == [2, expected, 2]


def test_the_warm_up_stops_at_the_target(settings, tmp_path):
    path, lines = prepare(settings(sft_steps=400, sft_target_reward=0.5, label_key="sum", **sums(tmp_path)), tmp_path / "base")
    step, reward = lines[-1].removeprefix("warm-up step ").split(": ")[0], float(lines[-1].split()[-1])
    assert int(step) < 400
    assert reward >= 0.5
    assert not same(weights(path), weights(prepare(settings(label_key="sum", **sums(tmp_path)), tmp_path / "cold")[0]))


def sums(tmp_path: Path) -> dict[str, str]:
    """The same rows with a column `sum` for the reward and `answer`, with marks, for the warm-up."""
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row | {"sum": row["answer"].split(">>")[1]}) + "\n" for row in ROWS))
    return {"prompt_data": str(path), "eval_data": str(path), "sft_key": "answer"}


def test_a_target_out_of_reach_is_said(settings, tmp_path):
    _, lines = prepare(settings(sft_steps=1, sft_target_reward=1.0), tmp_path / "base")
    assert lines[-1] == "warm-up: all 1 steps ended at greedy reward 0.000, below 1.0"


def test_what_the_warm_up_imitates(settings):
    row = {"answer": "4/2 = <<4/2=2>>2, <<1+1=2>>2", "other": 7}
    assert target_text(row, config=settings()) == "4/2 = 2, 2"
    assert target_text(row, config=settings(sft_strip="")) == row["answer"]
    assert target_text(row, config=settings(sft_key="other")) == "7"


def test_targets_that_no_rollout_could_finish_are_left_out(settings, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"prompt": "9+9=", "answer": "1888"}]))
    _, lines = prepare(settings(sft_steps=1), tmp_path / "base")
    assert "warm-up: left out 1 of 26 targets, longer than generate_max_len=4" in lines
    with pytest.raises(DataError, match="every target text is longer than generate_max_len=1; the shortest has 2 tokens"):
        prepare(settings(sft_steps=1, generate_max_len=1), tmp_path / "base")


def test_a_loaded_model_is_warmed_up_into_a_folder_of_its_own(settings, tmp_path):
    first, _ = prepare(settings(), tmp_path / "first")
    before = weights(first)
    path, _ = prepare(settings(scratch_tokenizer="none", model_name_or_path=str(first), sft_steps=2), tmp_path / "second")
    assert path == tmp_path / "second"
    assert same(weights(first), before)
    assert not same(weights(path), before)
    assert load_tokenizer(path).get_vocab() == load_tokenizer(first).get_vocab()
