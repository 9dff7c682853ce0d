"""`lightrft plan`: a table, bars and a verdict from a model's configuration; wrong words in a line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightrft.cli.plan import bars, print_report, run_plan
from lightrft.errors import ConfigError, ModelError

WORDS = ["--fsdp", "--bf16", "--engine_type", "vllm", "--world", "2", "--json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 96, "vocab_size": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    return tmp_path


def test_a_configuration_is_enough(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, as_json = run_plan(["--model_name_or_path", str(folder), "--gpu", "h100-80g", *WORDS], description="")
    assert as_json and json.loads(json.dumps(report)) == report
    assert report["fits"] and report["world"] == 2 and report["remedy"] is None and report["parameters"] == 127_424
    assert list(report["gib"]) == ["rollout", "log-prob", "update", "optimizer step", "sync"]
    print_report(report)
    text = capsys.readouterr().out
    assert "KV cache" in text and "fits; most in rollout:" in text and "█" in text


def test_what_would_make_it_fit_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = run_plan(["--model_name_or_path", str(folder), "--gpu=18g", *WORDS], description="")
    assert not report["fits"] and report["remedy"]["settings"]
    print_report(report)
    told = capsys.readouterr().out.splitlines()[-2:]
    assert told[0].startswith("does not fit: most in") and told[1].startswith("fits with --")
    report, _ = run_plan(["--model_name_or_path", str(folder), "--gpu", "1g", *WORDS], description="")
    print_report(report)
    assert "no setting and no number of ranks up to 16 makes it fit" in capsys.readouterr().out


def test_what_is_frozen_is_taken_off_the_plan(folder: Path) -> None:
    words = ["--model_name_or_path", str(folder), "--gpu", "h100-80g", "--strategy", "single", "--engine_type", "hf", "--freeze"]
    report, _ = run_plan([*words, "lm_head|layers"], description="")
    assert report["parameters"] == 127_424 and report["fits"]
    with pytest.raises(ModelError, match="freeze='visual' matches no name"):
        run_plan([*words, "visual"], description="")


def test_adapters_are_planned_for(folder: Path) -> None:
    """Rank 4 on a block's layers, 4 x (in + out) each: q, o 128; k, v 96; gate, up, down 160: 4 x 928, of two blocks 7,424."""
    words = ["--model_name_or_path", str(folder), "--gpu", "h100-80g", "--strategy", "single", "--engine_type", "hf", "--lora_rank", "4"]
    report, _ = run_plan(words, description="")
    assert report["parameters"] == 127_424 + 7_424 and report["fits"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--strategy", "single", "--engine_type", "hf"], {}),
        (["--fsdp", "--engine_type", "hf", "--fsdp_cpu_offload"], {"optimizer": 2 * 4}),
        (["--fsdp", "--bf16", "--use_mp_opt", "--engine_type", "hf", "--fsdp_cpu_offload"], {"optimizer": 3 * 4}),
        (["--zero_stage", "2", "--engine_type", "hf", "--adam_offload"], {"optimizer": 4 * 4}),
        (["--fsdp", "--engine_type", "hf", "--kl_coef", "0.1", "--offload_frozen"], {"reference": 4}),
        (["--fsdp", "--bf16", "--engine_type", "vllm", "--engine_sleep_level", "1"], {"engine weights, asleep": 2 * 2}),
        (["--fsdp", "--bf16", "--engine_type", "vllm", "--engine_sleep_level", "2"], {}),
    ],
)
def test_what_rests_in_host_memory_is_planned(
    folder: Path, flags: list[str], parts: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes of a parameter, on two ranks; an engine's weights are whole on each (given as twice a rank's slice)."""
    shape = json.loads((folder / "config.json").read_text()) | {"vocab_size": 1_000_000}
    (folder / "config.json").write_text(json.dumps(shape))
    world = ["--world", "1" if "single" in flags else "2"]
    report, _ = run_plan(["--model_name_or_path", str(folder), "--gpu", "h100-80g", *world, *flags], description="")
    fractions = {part: size * report["parameters"] / 2 / 2**30 for part, size in parts.items()}
    assert report["host_gib"] == pytest.approx(fractions, abs=2e-3)
    print_report(report)
    assert ("for each rank (" if parts else "host memory: nothing is kept there") in capsys.readouterr().out


def test_bars_end_at_the_device() -> None:
    lines = bars({"a": {"x": 40.0, "y": 40.0}, "bc": {"x": 20.0, "z": 100.0}}, device=80.0).splitlines()
    assert [line.index("|") for line in lines[:2]] == [36, 36]
    assert lines[1].count("▒") == 42 and lines[2] == "█ x  ▓ y  ▒ z"


def test_an_engine_that_is_not_known_is_refused(folder: Path) -> None:
    words = ["--model_name_or_path", str(folder), "--gpu", "48g", "--strategy", "elsewhere", "--engine_type", "continuous"]
    with pytest.raises(ConfigError) as refused:
        run_plan(words, description="")
    assert refused.value.problems == [
        "strategy 'elsewhere': a plan knows what single, fsdp, deepspeed hold; plan for one of them",
        "engine_type 'continuous': a plan knows what hf, vllm, sglang hold; plan for one of them",
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("MixtralForCausalLM", {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("Qwen3MoeForCausalLM", {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}),
    ],
)
def test_experts_are_refused(folder: Path, name: str, shape: dict[str, object]) -> None:
    dense = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dense | shape | {"architectures": [name]}))
    with pytest.raises(ModelError) as refused:
        run_plan(["--model_name_or_path", str(folder), "--gpu", "48g", *WORDS], description="")
    assert str(refused.value) == (
        f"{name} is a mixture of experts: how many tokens an expert gets is not known beforehand; plan for a dense model"
    )


def test_every_problem_is_told_in_a_line(folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run_plan(["--gpu", "h100-80", "--world", "none", "--nproc-per-node", "2", "--bf17"], description="")
    told = str(refused.value).splitlines()
    assert len(told) == 5
    assert any(line.startswith("--gpu 'h100-80' is not known") and "h100-80g" in line for line in told)
    assert any("--world 'none'" in line for line in told) and any("--bf17" in line for line in told)
    with pytest.raises(ConfigError, match="--gpu is missing"):
        run_plan(["--model_name_or_path", str(folder)], description="")
    with pytest.raises(ModelError, match="has no configuration to plan with"):
        run_plan(["--model_name_or_path", str(folder / "nowhere"), "--gpu", "48g"], description="")
