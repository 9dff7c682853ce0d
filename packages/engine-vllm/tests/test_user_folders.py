"""Folders as users bring them, on vLLM: those that are taken answer as transformers does, from their files and after a sync; one that
vLLM itself does not read ends the run at its start, with vLLM's words.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import engine_gap
from transformers import AutoModelForCausalLM
from user_inputs.folder_cases import CASES, TAKEN

from lightrft.config.load import make_config
from lightrft.models.load import open_causal_lm
from lightrft.strategy import get_strategy
from lightrft.strategy.strategy_base import AdamWSettings
from lightrft.testing.spmd import SpmdError, run_spmd
from lightrft.testing.tiny import tiny_model_folder

pytestmark = pytest.mark.long  # an engine for each folder

CLOSE = 2e-5
NOT_READ = "names without the model's prefix"
"""transformers and `hf` add the prefix; vLLM's classes do not know these names."""


def on_this_rank(folder: str, trust: bool) -> dict[str, float]:
    config = make_config(
        {
            "strategy": "single", "engine_type": "vllm", "model_name_or_path": folder, "prompt_max_len": 32, "generate_max_len": 16,
            "trust_remote_code": trust,
        }
    )  # fmt: skip
    judge = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trust).eval()
    strategy = get_strategy(config)
    strategy.setup_inference_engine(config)
    try:
        before = engine_gap(strategy, judge)
        opened = open_causal_lm(folder, dtype=torch.float32, trust_remote_code=trust)
        actor, _ = strategy.prepare_trainable(opened.model, optimizer=AdamWSettings(learning_rate=1e-3), weights=opened.weights)
        with torch.no_grad():
            for model in (actor, judge):
                model.get_input_embeddings().weight.mul_(1.5)
        strategy.update_engine_weights(actor)
        return {"before": before, "after": engine_gap(strategy, judge)}
    finally:
        strategy.shutdown()


@pytest.mark.parametrize("name", [name for name in TAKEN if name != NOT_READ])
def test_a_folder_that_is_taken_is_right_before_and_after_a_sync(tmp_path: Path, name: str) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    CASES[name].change(folder)
    [row] = run_spmd(on_this_rank, 1, str(folder), CASES[name].trust_remote_code, timeout_s=500)
    assert row["before"] <= CLOSE and row["after"] <= CLOSE, row


def test_a_folder_that_vllm_does_not_read_ends_the_run_at_its_start(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path / "m", family="llama")
    CASES[NOT_READ].change(folder)
    words = r"ModelError: vLLM does not start with model .* \(LlamaForCausalLM\): .*parameter named 'embed_tokens'.*--engine_type hf"
    with pytest.raises(SpmdError, match=words):
        run_spmd(on_this_rank, 1, str(folder), False, timeout_s=500)
