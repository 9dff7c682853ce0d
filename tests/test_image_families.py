"""Families whose models read images by other designs train as they are: the engine's log-probs, and packed rows as padded ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_families import FAMILIES

import lightrft
from lightrft.errors import ModelError
from lightrft.testing.image_text import image_rows

pytest.importorskip("PIL", reason="images are Pillow's")
pytestmark = pytest.mark.slow
PACKED = {"packing_samples": True, "max_tokens_per_micro_batch": 128}


def run(folder: Path, name: str, **changes: Any) -> list[dict[str, float]]:
    """The steps of two updates."""
    config = lightrft.make_config({
        "model_name_or_path": str(folder / "model"), "prompt_data": str(folder / "rows.jsonl"), "output_dir": str(folder / name),
        "strategy": "single", "engine_type": "hf", "rollout_batch_size": 4, "train_batch_size": 4, "n_samples_per_prompt": 2,
        "micro_train_batch_size": 2, "prompt_max_len": 64, "generate_max_len": 6, "learning_rate": 1e-3, "max_steps": 2, "plot_every": 0,
        "mixed_mm_data": True, "kl_coef": 0.1, "logprob_gap_prompts": 4, "loggers": ["jsonl"],
    } | changes)  # fmt: skip
    lightrft.train(config, rewards=[lambda samples: [float(sum(s.token_ids) % 3) for s in samples]])
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    assert {row["verify/image_trainer"] for row in rows if "verify/image_trainer" in row} == {1.0}
    assert {row["verify/image_engine"] for row in rows if "verify/image_engine" in row} == {1.0}
    return [row for row in rows if "rollout/logprob_gap" in row]


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3"])
def test_a_family_trains_and_packs_or_says_why_not(tmp_path: Path, family: str) -> None:
    FAMILIES[family](tmp_path / "model", 0)
    image_rows(tmp_path, counts=[0, 1, 2, 0, 1, 2, 0, 1])
    steps = run(tmp_path, "padded")
    assert len(steps) == 2 and all(step["rollout/logprob_gap_max"] < 1e-5 < step["train/grad_norm"] for step in steps)
    if family == "gemma3":
        with pytest.raises(ModelError, match="cannot be packed, where prompts have images: .* in both directions"):
            run(tmp_path, "packed", **PACKED)
        return
    for padded, packed in zip(steps, run(tmp_path, "packed", **PACKED), strict=True):
        assert packed["train/grad_norm"] == pytest.approx(padded["train/grad_norm"], rel=1e-4)
        assert packed["rollout/kl"] == pytest.approx(padded["rollout/kl"], abs=1e-6)
