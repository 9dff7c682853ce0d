"""The command line itself. Light start, exit codes, errors as lines without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = """
import sys
sys.argv = ["lightrft", *sys.argv[1:]]
from lightrft.cli.main import run
try:
    run()
except SystemExit as error:
    assert not error.code, error.code
heavy = {"torch", "transformers", "pydantic", "yaml", "matplotlib", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def lightrft(*words: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lightrft.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})}, cwd=folder, timeout=120)


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["plugins", "--json"]])
def test_help_and_plugins_load_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_plugins_lists_the_built_in_ones_in_both_forms() -> None:
    table = lightrft("plugins").stdout
    last = lightrft("plugins", "--json").stdout.splitlines()[-1]
    rows = {(row["kind"], row["name"]): row for row in json.loads(last)["plugins"]}
    assert {"name", "kind", "distribution", "version", "api", "capabilities", "state", "reason"} <= set(rows["engine", "hf"])
    assert rows["engine", "hf"]["distribution"] == "lightrft"
    assert "logprobs" in rows["engine", "hf"]["capabilities"]
    for kind, name in rows:
        assert any(kind in line and name in line for line in table.splitlines()), name


def test_train_help_lists_every_setting() -> None:
    from lightrft.config import Config

    text = lightrft("train", "--help").stdout
    assert not [
        name
        for name in (*(Config.model_fields.keys() - {"plugins"}), "config", "nproc-per-node", "json", "cpgd.drift_coef")
        if f"--{name}" not in text
    ]


def test_all_problems_one_line_each_exit_2_no_traceback(tmp_path: Path) -> None:
    words = ["train", "--zero_stag", "3", "--seed", "x", "--strategy", "sngle", "--prompt_data", "gone.jsonl", "--nproc-per-node", "0"]
    done = lightrft(*words, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), done.stderr
    for text in (
        "unknown flag '--zero_stag'; did you mean '--zero_stage'?",
        "seed='x'",
        "unknown strategy 'sngle'; did you mean 'single'?",
        "prompt_data='gone.jsonl': no such file or folder",
        "--nproc-per-node '0'",
    ):
        assert sum(text in line for line in lines) == 1, text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "environment"), [(["--traceback"], {}), ([], {"LIGHTRFT_TRACEBACK": "1"})])
def test_the_traceback_is_there_when_asked_for(words: list[str], environment: dict[str, str]) -> None:
    done = lightrft("train", "--seed", *words, environment=environment)
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "ConfigError" in done.stderr


def test_a_dataset_of_a_hub_that_is_not_reached_is_told_before_a_model_loads(tmp_path: Path) -> None:
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    words = ["--strategy", "single", "--engine_type", "hf", "--scratch_tokenizer", "char", "--output_dir", str(tmp_path / "run")]
    done = lightrft("train", *words, "--prompt_data", "openai/gsm8k:main", environment=closed)
    [line] = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: openai/gsm8k: no such file or folder here, and as a dataset of the hub")
    assert "http://127.0.0.1:9 cannot be reached" in line and f"not in the cache {str(tmp_path / 'datasets')!r}" in line


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("trian", "; did you mean 'train'? (`lightrft --help` lists all)"),
        ("resume", "; a run goes on with `lightrft train --config RUN/config.yaml --resume_from latest`"),
    ],
)
def test_an_unknown_command_names_the_nearest_or_what_does_it(name: str, answer: str) -> None:
    done = lightrft(name)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: no command {name!r}{answer}")


def test_bisect_mismatch_says_that_all_agrees_in_a_table_and_in_json(tmp_path: Path) -> None:
    from lightrft.testing.tiny import tiny_model_folder

    tiny_model_folder(tmp_path / "model", seed=1)
    rows = [json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in ("12+34=", "5", "what is 7?")]
    (tmp_path / "data.jsonl").write_text("".join(rows), encoding="utf-8")
    words = ["--strategy", "single", "--engine_type", "hf", "--model_name_or_path", "model", "--prompt_data", "data.jsonl"]
    sizes = ["--generate_max_len", "16", "--prompt_max_len", "64", "--nproc-per-node", "1", "--json"]
    done = lightrft("bisect-mismatch", *words, *sizes, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "none: engine and trainer agree" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cause"] == "none"
    assert max(row["max"] for row in found["experiments"] if row["max"] is not None) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "model"], "nothing is written"


def test_check_invariance_prints_how_far_cuts_lie_apart(tmp_path: Path) -> None:
    from lightrft.testing.tiny import tiny_model_folder

    tiny_model_folder(tmp_path / "model", seed=1)
    (tmp_path / "data.jsonl").write_text('{"prompt": "12+34=", "answer": "1"}\n', encoding="utf-8")
    words = ["--strategy", "single", "--engine_type", "hf", "--model_name_or_path", "model", "--prompt_data", "data.jsonl"]
    sizes = ["--generate_max_len", "8", "--prompt_max_len", "64", "--n_samples_per_prompt", "3", "--nproc-per-node", "1", "--json"]
    done = lightrft("check-invariance", *words, *sizes, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the update does not depend on the split" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["invariant"] and len(found["splits"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "model"], "nothing is written"
