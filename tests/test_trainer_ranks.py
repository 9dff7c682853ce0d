"""A run of two ranks is the same run after a resume, on DeepSpeed too; one rank goes on with it, and balancing changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lightrft.config.load import make_config
from lightrft.testing import run_spmd
from lightrft.testing.tiny import tiny_model_folder
from lightrft.trainer.run import train

pytestmark = pytest.mark.slow  # runs on two ranks, one after the other

REWARD = """
def vowels(samples):
    return [sum(character in "aeiou" for character in sample.completion) / 4 for sample in samples]
"""
ZERO: dict[str, dict[str, Any]] = {"zero 2": {"zero_stage": 2}, "zero 3": {"zero_stage": 3, "ema_beta": 0.9}}
FSDP = {"fsdp": True, "ema_beta": 0.9}


def run(folder: Path, name: str, **changes: Any) -> None:
    """One run in `folder/name`: 4 steps, a checkpoint every second."""
    train(make_config({
        "engine_type": "hf", "loggers": ["jsonl"], "plot_every": 0, "max_steps": 4, "num_episodes": 9, "seed": 3,
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "data.jsonl"), "reward": [f"{folder}/reward.py:vowels"],
        "prompt_max_len": 16, "generate_max_len": 8, "rollout_batch_size": 4, "n_samples_per_prompt": 4, "save_every": 2,
        "train_batch_size": 16, "micro_train_batch_size": 4, "learning_rate": 1e-3, "kl_coef": 0.05, "output_dir": str(folder / name),
        **changes,
    }))  # fmt: skip


def whole_and_resumed(where: str, name: str) -> None:
    folder = Path(where)
    run(folder, name, **ZERO[name])
    run(folder, f"{name} resumed", **ZERO[name], resume_from=str(folder / name / "checkpoints" / "step-2"))


def on_two_ranks(where: str) -> None:
    folder = Path(where)
    run(folder, "two steps", **FSDP, max_steps=2)
    for name, changes in (("plain", {}), ("balanced", {"balance_ranks": True})):
        run(folder, name, fsdp=True, max_steps=1, save_every=0, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    tiny_model_folder(path / "model")
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(12)]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "reward.py").write_text(REWARD)
    run_spmd(on_two_ranks, 2, str(path), timeout_s=400)
    return path


def rows(run_folder: Path) -> list[dict[str, Any]]:
    """What a run logged, without what time and memory it took."""
    found = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and k != "rollout/tokens_per_s"} for row in found]


def weights(run_folder: Path, model: str = "model") -> dict[str, Any]:
    return load_file(run_folder / model / "model.safetensors")


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("name", [pytest.param("zero 2", marks=pytest.mark.long), "zero 3"])
def test_a_resumed_run_of_deepspeed_is_bitwise_the_whole_one(folder: Path, name: str) -> None:
    run_spmd(whole_and_resumed, 2, str(folder), name, timeout_s=300)
    assert [row["step"] for row in rows(folder / name) if "train/loss" in row] == [1, 2, 3, 4]
    assert rows(folder / f"{name} resumed") == rows(folder / name)
    assert [path.name for path in (folder / f"{name} resumed" / "checkpoints").iterdir()] == ["step-4"], "it began after step 2"
    for model in ("model", "ema_model") if name == "zero 3" else ("model",):
        assert_same(weights(folder / f"{name} resumed", model), weights(folder / name, model))


def test_one_rank_goes_on_where_two_were(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(folder / "two steps" / "checkpoints" / "step-2")
    run(folder, "nothing more", **FSDP, max_steps=2, resume_from=saved)
    for model in ("model", "ema_model"):
        assert_same(weights(folder / "nothing more", model), weights(folder / "two steps", model))
    assert "resume: random of 2 ranks does not fit 1 and starts anew" in capsys.readouterr().out
    run(folder, "goes on", **FSDP, resume_from=saved)
    found = rows(folder / "goes on")
    assert [row["step"] for row in found if "train/loss" in row] == [1, 2, 3, 4]
    assert found[: len(rows(folder / "two steps"))] == rows(folder / "two steps"), "the log begins with the steps of two ranks"


def test_balancing_ranks_does_not_change_the_update(folder: Path) -> None:
    plain, balanced = ([row for row in rows(folder / name) if "train/loss" in row] for name in ("plain", "balanced"))
    assert plain[0]["train/grad_norm"] > 0.01
    for name in ("train/loss", "train/grad_norm", "train/ratio", "train/kl", "rollout/reward"):
        assert balanced[0][name] == pytest.approx(plain[0][name], rel=1e-6, abs=1e-7), name
