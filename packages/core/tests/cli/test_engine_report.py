"""What options of an engine do: a row for each set, with the numbers of its own job, and why one did not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightrft.cli.engine_report import run_engine_report
from lightrft.errors import ConfigError
from lightrft.testing.tiny import tiny_model_folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{n} + {n} =", "answer": str(2 * n)} for n in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "strategy": "single", "engine_type": "hf", "model_name_or_path": str(tiny_model_folder(tmp_path / "model")),
        "prompt_data": str(tmp_path / "data.jsonl"), "prompt_max_len": 16, "generate_max_len": 4, "rollout_batch_size": 4,
        "n_samples_per_prompt": 2, "train_batch_size": 8, "micro_train_batch_size": 4, "output_dir": str(tmp_path / "mine"),
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def test_a_row_for_each_set(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightrft.cli.main", "engine-report", "--config", str(recipe), "--steps", "3", "--json"]
    command += ["--set", "temperature=0.5", "top_k=3", "--set", "quantization=fp8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, "one of them did not run"
    found = json.loads(done.stdout.splitlines()[-1])
    plain, cold, quantised = found["rows"]
    assert [row["options"] for row in found["rows"]] == ["as the recipe", "temperature=0.5 top_k=3", "quantization=fp8"]
    for row in (plain, cold):
        assert row["rc"] == 0 and row["start_s"] > 0 and row["measured"]["tokens_per_s"] > 0 and row["measured"]["memory_gib"] > 0
        assert 0 <= row["measured"]["gap"] <= row["measured"]["gap_max"] < 1e-5, "the engine hf is the trainer's own model"
        assert row["measured"]["ess"] == pytest.approx(1.0, abs=1e-4)
    assert quantised["rc"] == 2 and quantised["measured"]["gap"] is None and found["ok"] is False
    refused = "error: engine_args={'quantization': 'fp8'} has no effect: engine 'hf' has no library with options; leave engine_args out "
    refused += "(docs: troubleshooting#settings-flags-and-files)"
    assert quantised["said"] == [refused] and f"    {refused}" in done.stdout
    assert not (tmp_path / "mine").exists(), "the recipe's own folder is left alone"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "no_value"], "--set 'no_value': expected NAME=VALUE"),
        (["--set", "=3"], "--set '=3': expected NAME=VALUE"),
        (["--steps", "1"], "--steps 1: give at least 2"),
    ],
)
def test_bad_input(recipe: Path, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run_engine_report(["--config", str(recipe), *words], description="")
    with pytest.raises(ConfigError, match="No such file or directory; give the path of a YAML file"):
        run_engine_report(["--config", str(recipe) + "x"], description="")
