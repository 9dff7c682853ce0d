"""In bfloat16 a matmul rounds by its shape: the old log-probs come from the update's own micro-batches, so that a first ratio is 1."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightrft.config.load import make_config
from lightrft.testing.spmd import run_spmd
from lightrft.testing.tiny import tiny_tokenizer
from lightrft.trainer.run import train
from lightrft.types import Sample


def noise(samples: Sequence[Sample]) -> list[float]:
    """Rewards that differ within a group, whatever was said."""
    return [random.Random(f"{sample.prompt}{index}").random() for index, sample in enumerate(samples)]


def make_inputs(folder: Path) -> None:
    """A model wide enough for bfloat16 to round by batch, and sharp enough for that to show."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=256, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.6)
        model.lm_head.weight.mul_(3.0)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    digits = random.Random(0)
    texts = ["".join(digits.choice("0123456789") for _ in range(digits.randint(5, 60))) for _ in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in texts))


def run(folder: str, train_batch_size: int, balance: bool) -> list[dict[str, float]]:
    """Steps of GSPO with the paper's bounds, at a learning rate that changes nothing."""
    root = Path(folder)
    train(
        make_config(
            dict(
                model_name_or_path=str(root / "model"), prompt_data=str(root / "prompts.jsonl"), output_dir=str(root / "run"),
                overwrite_output_dir=True, fsdp=True, engine_type="hf", reward=[f"{__file__}:noise"], bf16=True, rollout_batch_size=8,
                n_samples_per_prompt=4, train_batch_size=train_batch_size, micro_train_batch_size=4, micro_rollout_batch_size=8,
                prompt_max_len=64, generate_max_len=24, max_steps=1, learning_rate=1e-12, plot_every=0, loggers=["jsonl"],
                policy_loss="gspo", loss_aggregation="sequence_mean", eps_clip_low=3e-4, eps_clip_high=4e-4, verify_sync_every=0,
                balance_ranks=balance,
            )
        )
    )  # fmt: skip
    lines = (root / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "train/ratio" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "train_batch_size", "balance"), [(1, 32, False), pytest.param(1, 8, False, marks=pytest.mark.long), (2, 16, True)]
)
def test_nothing_is_clipped_where_the_policy_has_not_moved(tmp_path: Path, ranks: int, train_batch_size: int, balance: bool) -> None:
    make_inputs(tmp_path)
    [row] = run_spmd(run, ranks, str(tmp_path), train_batch_size, balance, timeout_s=300)[0]
    assert row["train/first_ratio_error"] == 0.0
    assert row["train/clip_fraction"] == 0.0 and row["train/ratio"] == pytest.approx(1.0, abs=1e-6)
