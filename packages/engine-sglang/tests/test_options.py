"""`engine_args` on SGLang: its own list of options, read without importing it, and an option that arrives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightrft.config import Config
from lightrft.config.load import make_config
from lightrft.engine.base import EngineSetup
from lightrft.errors import ConfigError, EngineError
from lightrft.plugins import Registry
from lightrft.strategy import get_strategy
from lightrft.testing.tiny import tiny_model_folder
from lightrft_sglang.options import OURS, options


def test_the_list_is_sglangs_and_nothing_of_it_is_imported() -> None:
    found = options()
    assert set(found.types) > {*OURS, "max_running_requests", "quantization", "attention_backend", "speculative_algorithm"}
    fields = {word.rstrip(",") for use in OURS.values() for word in use.split() if word != "and"}
    assert fields - set(Config.model_fields) == {"nproc_per_node"}
    code = "import sys, lightrft_sglang.options as o; o.options(); sys.exit(bool({'sglang', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(found.problems({"attention_backed": "x", "random_seed": 1, "max_running_requests": "4"}, engine="sglang")) == [
        "engine_args.attention_backed: engine 'sglang' has no such option; did you mean 'attention_backend'?",
        "engine_args.random_seed=1: LightRFT sets this option of engine 'sglang'; use seed",
        "engine_args.max_running_requests='4': engine 'sglang' takes Optional[int]",
    ]


def test_an_option_arrives(tmp_path: Path) -> None:
    """It wins over the engine's own choice, and what the engine was built with is told."""
    setup = EngineSetup(
        model_path=str(tiny_model_folder(tmp_path)), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=64,
        max_batch_size=8, mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None, options={"max_running_requests": 5},
    )  # fmt: skip
    engine = Registry.discover().load("engine", "sglang")(setup)
    try:
        assert engine._process._engine.server_args.max_running_requests == 5
        assert engine.arguments["max_running_requests"] == 5 and engine.arguments["model_path"] == setup.model_path
    finally:
        engine.shutdown()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"deterministic_rollout": True},
            "^deterministic_rollout=True needs the capability 'deterministic', which engine 'sglang' .* does not",
        ),
        (
            {"lora_rank": 4, "lora_sync": "adapters"},
            r"^lora_sync='adapters' needs the capability 'adapters', which engine 'sglang' \(.*\) does not declare \(its LoRA layers "
            r"ask for pinned memory, which it has with CUDA alone, where nobody has run it\); engine that does: hf.*; "
            r"or set --lora_sync merged$",
        ),
    ],
)
def test_what_it_does_not_declare_is_refused_before_it_starts(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    config = make_config({
        "strategy": "single", "engine_type": "sglang", "model_name_or_path": str(tiny_model_folder(tmp_path)), "prompt_max_len": 32,
        "generate_max_len": 16, **settings,
    })  # fmt: skip
    with pytest.raises(ConfigError, match=words) as told:
        get_strategy(config).setup_inference_engine(config)
    assert len(told.value.problems) == 1


@pytest.mark.slow
def test_its_lora_layers_do_not_start_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Why adapters alone are refused. Where this fails one day, SGLang can be given them."""
    asked = {"enable_lora": True, "max_lora_rank": 4, "lora_target_modules": ["all"], "lora_backend": "torch_native"}
    setup = EngineSetup(
        model_path=str(tiny_model_folder(tmp_path)), dtype=torch.float32, device=torch.device("cpu"), seed=0, max_model_len=64,
        max_batch_size=8, mem_util=0.3, trust_remote_code=False, rank=0, group_size=1, group=None, options=asked,
    )  # fmt: skip
    with pytest.raises(EngineError, match="SGLang did not start"):
        Registry.discover().load("engine", "sglang")(setup)
    said = capfd.readouterr()
    assert "pin_memory=True requires a CUDA or other accelerator backend" in said.out + said.err
