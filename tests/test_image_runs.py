"""Runs on prompts with images: two ranks of each backend (of FSDP2 four) are the one-process run, also where a rank has no image in a pass,
and where rows are packed or shared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightrft.config.load import make_config
from lightrft.testing import run_spmd
from lightrft.testing.image_text import image_rows, tiny_image_folder, tiny_image_model
from lightrft.trainer.run import train

pytest.importorskip("PIL", reason="images are Pillow's")
COMPARED = ("rollout/reward", "train/loss", "train/grad_norm", "rollout/kl")
PACKED: dict[str, Any] = {"packing_samples": True, "max_tokens_per_micro_batch": 64}
ZERO: dict[int, dict[str, Any]] = {stage: {"strategy": "deepspeed", "zero_stage": stage} for stage in (2, 3)}
BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "fsdp packed": {"strategy": "fsdp"} | PACKED,
    "fsdp sp": {"strategy": "fsdp", "sp_size": 2},
    "fsdp lora": {"strategy": "fsdp", "lora_rank": 2},
    "fsdp frozen": {"strategy": "fsdp", "freeze": "visual"},
    "zero 2": ZERO[2],
    "zero 3": ZERO[3],
    "fsdp packed sp": {"strategy": "fsdp", "sp_size": 2} | PACKED,
    "zero 2 packed": ZERO[2] | PACKED,
    "zero 2 sp": ZERO[2] | {"sp_size": 2},
    "zero 2 packed sp": ZERO[2] | {"sp_size": 2} | PACKED,
    "zero 3 packed": ZERO[3] | PACKED,
    "zero 3 sp": ZERO[3] | {"sp_size": 2},
    "zero 3 packed sp": ZERO[3] | {"sp_size": 2} | PACKED,
}
DAILY = ("fsdp", "fsdp packed", "fsdp sp", "zero 3")
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


def is_one(folder: Path, backend: str, *, ranks: int) -> None:
    """Numbers and weights of a run on so many ranks are those of one process."""
    one = "one"
    if changes := {name: value for name, value in BACKENDS[backend].items() if name in ("lora_rank", "freeze")}:
        one = f"one {backend}"
        if not (folder / one).exists():
            run_spmd(on_these_ranks, 1, str(folder), one, {"strategy": "fsdp"} | changes, timeout_s=300)
    many = f"{ranks} {backend}"
    run_spmd(on_these_ranks, ranks, str(folder), many, BACKENDS[backend], timeout_s=500)
    assert curve(folder / many) == pytest.approx(curve(folder / one), rel=2e-4, abs=1e-6)
    mine, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in (many, one))
    assert mine.keys() == theirs.keys()
    before = load_file(folder / "model" / "model.safetensors")
    if "freeze" in changes:
        frozen = {name for name in before if "visual" in name}
        assert len(frozen) > 10 and frozen == {name for name in before if mine[name].equal(before[name])}
    apart = torch.cat([(mine[name] - theirs[name]).flatten() for name in mine])
    moved = torch.cat([(theirs[name] - before[name]).flatten() for name in mine])
    # AdamW divides a gradient by its own size: where one is little more than rounding, the weight moves by a part of a step.
    assert float((apart.abs() > 3e-5).double().mean()) < 1e-4 and float(apart.norm()) < 1e-3 * float(moved.norm())


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=pytest.mark.slow if name in DAILY else pytest.mark.long) for name in BACKENDS]
)
def test_two_ranks_are_one(folder: Path, backend: str) -> None:
    is_one(folder, backend, ranks=2)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["fsdp", "fsdp frozen"])
def test_four_ranks_are_one(folder: Path, backend: str) -> None:
    is_one(folder, backend, ranks=4)


@pytest.mark.slow
def test_the_part_that_reads_images_was_trained(folder: Path) -> None:
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(folder / "one" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if "visual" in name and not before[name].equal(after[name])}
    assert len(moved) > 10
    assert (folder / "one" / "model" / "preprocessor_config.json").is_file(), "the exported folder reads images as well"
    kept = [json.loads(line) for line in (folder / "one" / "samples.jsonl").read_text().splitlines()]
    assert {len(row.get("images", ())) for row in kept} > {1}, "pictures stand beside the answers"


@pytest.mark.long
def test_the_guides_script_for_image_text_models(folder: Path) -> None:
    flags: dict[str, Any] = {
        "engine_type": "hf", "model_name_or_path": folder / "model", "prompt_data": folder / "rows.jsonl", "prompt_max_len": 24,
        "generate_max_len": 6, "rollout_batch_size": 4, "n_samples_per_prompt": 2, "train_batch_size": 8, "micro_train_batch_size": 1,
        "max_steps": 1, "plot_every": 0, "reward": f"{folder}/reward.py:odd", "output_dir": folder / "script",
    }  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    script = Path(__file__).parents[1] / "examples/train_vl.py"
    command = [sys.executable, str(script), "--fsdp", "--mixed_mm_data", "--apply_chat_template", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "script" / "metrics.jsonl").read_text().splitlines()]
    assert {row["verify/image_engine"] for row in rows if "verify/image_engine" in row} == {1.0}
