"""Quantised folders that are dequantised at start: the numbers by hand and by transformers, a run from one, and where they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

import lightrft
from lightrft.config.load import make_config
from lightrft.config.quantised import Scaled
from lightrft.models.dequantise import dequantise, multiplied
from lightrft.models.folder_check import folder_problem
from lightrft.plugins.registry import Registry
from lightrft.testing.tiny import tiny_model_folder, tiny_tokenizer
from lightrft.trainer.preflight import preflight_problems

WEIGHTS = "model.safetensors"
BLOCK = 16
FP8 = torch.float8_e4m3fn
CHANNELS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


def in_fp8(folder: Path, *, block: int = BLOCK, drop: str = "", method: str = "fp8") -> dict[str, torch.Tensor]:
    """Every projection of the folder in FP8, its block's largest number at 448; returns the plain bfloat16 tensors that this means."""
    stored, plain = {}, {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        stored[name] = plain[name] = tensor.bfloat16()
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = tensor.shape
        high, wide = (block, block) if method == "fp8" else (1, columns)
        scales = torch.zeros(-(-rows // high), -(-columns // wide))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                scales[i, j] = tensor[i * high : (i + 1) * high, j * wide : (j + 1) * wide].abs().max() / 448
        spread = torch.tensor([[scales[r // high, c // wide] for c in range(columns)] for r in range(rows)])
        stored[name] = (tensor / spread).to(FP8)
        stored[name + ("_scale_inv" if method == "fp8" else "_scale")] = scales
        plain[name] = (stored[name].float() * spread).bfloat16()
    save_file({name: t for name, t in stored.items() if not drop or drop not in name}, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    if method != "fp8":
        settings = {"quant_method": method, "quantization_status": "compressed", "format": "float-quantized"}
        settings |= {"config_groups": {"group_0": {"weights": CHANNELS, "targets": ["Linear"]}}, "ignore": ["lm_head"]}
    change(folder, dtype="bfloat16", quantization_config=settings)
    return plain


def change(folder: Path, **values: Any) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | values))


def in_mxfp4(folder: Path) -> None:
    """GPT-OSS with random bits for the stacked matrices of its experts, and exponents from -6 to 5."""
    make_family("gpt-oss").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    generator, state = torch.Generator().manual_seed(0), load_file(folder / WEIGHTS)
    for name in [name for name in state if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, rows = state.pop(name).shape
        state[f"{name}_blocks"] = torch.randint(256, (experts, rows, inner // 32, 16), dtype=torch.uint8, generator=generator)
        state[f"{name}_scales"] = torch.randint(121, 133, (experts, rows, inner // 32), dtype=torch.uint8, generator=generator)
    save_file(
        {name: t if t.dtype == torch.uint8 else t.bfloat16() for name, t in state.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    change(folder, dtype="bfloat16", quantization_config={"quant_method": "mxfp4"})


def test_numbers_by_hand() -> None:
    held = {
        "w": torch.tensor([[1.0, -2.0, 448.0], [0.5, 4.0, 8.0], [16.0, 1.5, -1.0]]).to(FP8),
        "grid": torch.tensor([[0.5, 2.0], [3.0, 10.0]]),
        "one": torch.tensor([[0.25]]),
        "bytes": torch.tensor([[[[0x21, 0xF7] + [0] * 14]]], dtype=torch.uint8),
        "exponents": torch.tensor([[[128]]], dtype=torch.uint8),
    }
    blocks = multiplied(Scaled("w", "grid", (2, 2)), held.__getitem__, torch.bfloat16)
    assert blocks.tolist() == [[0.5, -1.0, 896.0], [0.25, 2.0, 16.0], [48.0, 4.5, -10.0]], "the last block is smaller than the others"
    assert multiplied(Scaled("w", "one", None), held.__getitem__, torch.float32)[0].tolist() == [0.25, -0.5, 112.0]
    four = multiplied(Scaled("bytes", "exponents", (1, 32), four_bits=True), held.__getitem__, torch.bfloat16)
    assert four.shape == (1, 32, 1) and four.flatten().tolist()[:5] == [1.0, 2.0, 12.0, -12.0, 0.0], "twice 0.5, 1, 6, -6"


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_fp8_is_what_its_scales_say(tmp_path: Path, method: str) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    plain = in_fp8(folder, method=method)
    assert folder_problem("m", str(folder), tokenizer=True, dequantises=True) == ""
    assert "14 tensors) to bfloat16" in dequantise(folder, tmp_path / "plain")
    found = load_file(tmp_path / "plain" / WEIGHTS)
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)
    if method == "fp8":
        same_as_transformers(folder, tmp_path / "plain", FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True))


def test_a_last_block_may_be_smaller(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    plain = in_fp8(folder, block=48)
    dequantise(folder, tmp_path / "plain")
    found = load_file(tmp_path / "plain" / WEIGHTS)
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert folder_problem("m", str(tmp_path / "plain"), tokenizer=True) == ""


def test_mxfp4_of_gpt_oss_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    in_mxfp4(tmp_path / "m")
    assert folder_problem("m", str(tmp_path / "m"), tokenizer=True, dequantises=True) == ""
    assert "(mxfp4, " in dequantise(tmp_path / "m", tmp_path / "plain")
    same_as_transformers(tmp_path / "m", tmp_path / "plain", Mxfp4Config(dequantize=True))


def same_as_transformers(folder: Path, plain: Path, settings: Any) -> None:
    expected: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=settings)
    found: Any = AutoModelForCausalLM.from_pretrained(plain, dtype="auto")
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {t.dtype for t in ours.values()} == {torch.bfloat16}


def settings_for(folder: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "d.jsonl").write_text('{"prompt": "7+7=", "answer": "14"}\n')
    values = {"strategy": "single", "engine_type": "hf", "model_name_or_path": str(folder), "prompt_data": str(tmp_path / "d.jsonl")}
    sizes = {"rollout_batch_size": 1, "train_batch_size": 8, "prompt_max_len": 32, "generate_max_len": 8, "max_steps": 1}
    return values | sizes | {"output_dir": str(tmp_path / "run"), "n_samples_per_prompt": 8, "learning_rate": 1e-3}


def test_a_run_from_a_quantised_folder_leaves_a_plain_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    plain = in_fp8(folder)
    random = [lambda samples: [float(len(s.completion) + i) for i, s in enumerate(samples)]]
    lightrft.train(settings_for(folder, tmp_path), rewards=random)
    assert "dequantised" in (said := capsys.readouterr().out) and "(fp8, 14 tensors) to bfloat16" in said
    base, model = load_file(tmp_path / "run/base" / WEIGHTS), load_file(tmp_path / "run/model" / WEIGHTS)
    assert all(torch.equal(base[name], plain[name]) for name in plain)
    assert model.keys() == plain.keys() and {t.dtype for t in model.values()} == {torch.bfloat16}
    assert any(not torch.equal(model[name], plain[name]) for name in plain), "one step has moved it"
    for saved in (tmp_path / "run/base", tmp_path / "run/model"):
        config = json.loads((saved / "config.json").read_text())
        assert "quantization_config" not in config and config["dtype"] == "bfloat16"
        assert folder_problem("m", str(saved), tokenizer=True) == ""


@pytest.mark.parametrize(
    ("drop", "words"), [("_scale_inv", "its files have no"), ("q_proj.weight", "lack model.layers.0.self_attn.q_proj")]
)
def test_damaged_ones_are_refused_before_ranks_start(tmp_path: Path, drop: str, words: str) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    in_fp8(folder, drop=drop)
    [line] = problems(settings_for(folder, tmp_path), "train")
    assert words in line and "\n" not in line


def test_scales_of_another_grid_are_refused(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    in_fp8(folder)
    change(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})
    [line] = problems(settings_for(folder, tmp_path), "train")
    assert "the scales of model.layers.0.mlp.down_proj.weight [64, 128] are F32 [4, 8]" in line


def test_evaluations_critics_and_rewards_name_the_remedy(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    whole = tiny_model_folder(tmp_path / "whole", family="llama")
    in_fp8(folder)
    assert problems(settings_for(folder, tmp_path), "train") == [] == problems(settings_for(folder, tmp_path), "prompts")
    critic = settings_for(whole, tmp_path) | {"advantage_estimator": "gae", "critic_model_name_or_path": str(folder)}
    reward = settings_for(whole, tmp_path) | {"reward": [f"model:{folder}"]}
    evaluation = settings_for(folder, tmp_path) | {"eval_data": [str(tmp_path / "d.jsonl")]}
    for settings, mode in ((critic, "train"), (reward, "train"), (evaluation, "eval")):
        [line] = problems(settings, mode)
        assert "quantised (fp8, says config.json)" in line and "the folder base/ of a run that trained it" in line


def problems(settings: dict[str, Any], mode: Any) -> list[str]:
    return preflight_problems(make_config(settings), mode=mode, registry=Registry.discover(), world_size=1)
