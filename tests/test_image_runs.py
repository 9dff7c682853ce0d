"""Runs on prompts with images: two ranks of each backend are the one-process run, also where a rank has no image in a pass,
and where rows are packed or shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lightrft.config.load import make_config
from lightrft.testing import run_spmd
from lightrft.testing.image_text import image_rows, tiny_image_folder, tiny_image_model
from lightrft.trainer.run import train

pytest.importorskip("PIL", reason="images are Pillow's")
COMPARED = ("rollout/reward", "train/loss", "train/grad_norm", "rollout/kl")
BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "fsdp packed": {"strategy": "fsdp", "packing_samples": True, "max_tokens_per_micro_batch": 64},
    "fsdp sp": {"strategy": "fsdp", "sp_size": 2},
    "fsdp lora": {"strategy": "fsdp", "lora_rank": 2},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
}
REWARD = "def odd(samples):\n    return [float(len(s.token_ids) % 3) + sum(s.token_ids) % 2 for s in samples]\n"


def run(folder: Path, name: str, **changes: Any) -> None:
    train(make_config({
        "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 2, "seed": 3, "mixed_mm_data": True,
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "rows.jsonl"), "reward": [f"{folder}/reward.py:odd"],
        "prompt_max_len": 24, "generate_max_len": 6, "rollout_batch_size": 4, "n_samples_per_prompt": 2, "train_batch_size": 8,
        "micro_train_batch_size": 1, "micro_rollout_batch_size": 2, "learning_rate": 1e-3, "kl_coef": 0.05, "apply_chat_template": True,
        "output_dir": str(folder / name), **changes,
    }))  # fmt: skip


def on_these_ranks(where: str, name: str, changes: dict[str, Any]) -> None:
    run(Path(where), name, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    tiny_image_folder(path / "model", tiny_image_model())
    image_rows(path, counts=[0, 0, 1, 2, 1, 0, 0, 0])  # in its first rollouts a rank has none
    (path / "reward.py").write_text(REWARD)
    run_spmd(on_these_ranks, 1, str(path), "one", {"strategy": "single"}, timeout_s=300)
    return path


def curve(run_folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if COMPARED[0] in row for name in COMPARED]


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.long if name in ("fsdp lora", "zero 2") else pytest.mark.slow) for name in BACKENDS]
)
def test_two_ranks_are_one(folder: Path, backend: str) -> None:
    one = "one"
    if "lora" in backend:
        one = "one lora"
        run_spmd(on_these_ranks, 1, str(folder), one, BACKENDS[backend], timeout_s=300)
    run_spmd(on_these_ranks, 2, str(folder), f"two {backend}", BACKENDS[backend], timeout_s=300)
    assert curve(folder / f"two {backend}") == pytest.approx(curve(folder / one), rel=2e-4, abs=1e-6)
    mine, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in (f"two {backend}", one))
    assert mine.keys() == theirs.keys()
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 3e-5


@pytest.mark.slow
def test_the_part_that_reads_images_was_trained(folder: Path) -> None:
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(folder / "one" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if "visual" in name and not before[name].equal(after[name])}
    assert len(moved) > 10
    assert (folder / "one" / "model" / "preprocessor_config.json").is_file(), "the exported folder reads images as well"
