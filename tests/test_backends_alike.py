"""The whole loop learns the same on every backend. Rollout, KL to a frozen model, update and sync, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer.run import train

STEPS = 3
BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": True},
    "zero 0": {"strategy": "deepspeed", "zero_stage": 0},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {},
    "zero 3": {"zero_stage": 3},
    "zero 3, Adam in host memory": {"zero_stage": 3, "adam_offload": True},
}

REWARD = """
def vowels(samples):
    return [sum(character in "aeiou" for character in sample.completion) / 4 for sample in samples]
"""


def settings(folder: Path) -> dict[str, Any]:
    return {
        "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": STEPS, "seed": 3,
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "data.jsonl"), "reward": [f"{folder}/reward.py:vowels"],
        "prompt_max_len": 16, "generate_max_len": 8, "rollout_batch_size": 4, "n_samples_per_prompt": 4,
        "train_batch_size": 16, "micro_train_batch_size": 4, "learning_rate": 1e-3, "kl_coef": 0.05,
    }  # fmt: skip


def one_after_the_other(folder: str) -> dict[str, list[dict[str, float]]]:
    """In one process: each run ends its process group, and the next joins anew."""
    out = {}
    for name, backend in BACKENDS.items():
        output = Path(folder) / name.replace(" ", "-")
        train(make_config(settings(Path(folder)) | backend | {"output_dir": str(output)}))
        out[name] = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return out


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("alike")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(12)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return run_spmd(one_after_the_other, 2, str(folder), timeout_s=300)[0]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "fsdp"])
def test_three_steps_are_those_of_fsdp(metrics: dict[str, list[dict[str, float]]], backend: str) -> None:
    found = [row for row in metrics[backend] if "train/loss" in row]
    expected = [row for row in metrics["fsdp"] if "train/loss" in row]
    assert len(found) == len(expected) == STEPS
    assert all(row["train/grad_norm"] > 0.01 for row in expected)  # so there was something to learn from
    assert len({row["rollout/reward"] for row in expected}) > 1
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("rollout/reward", "rollout/length_mean", "train/grad_norm", "train/loss", "train/kl", "train/lr"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
        assert mine["rollout/logprob_gap"] < 1e-5  # the engine has the trained weights
