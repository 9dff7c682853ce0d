"""`lightrft.train` with functions and rows in memory: the same run as from files, kept so that it can go on from its folder."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lightrft
from lightrft.errors import ConfigError, DataError
from lightrft.testing.fake_strategy import fake_registry
from lightrft.testing.tiny import tiny_model_folder

ALPHABET = "0123456789 =+"
ROWS = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(4)]


def brevity(samples: Sequence[lightrft.Sample]) -> list[float]:
    """Shorter is better."""
    return [-float(sample.num_tokens) + 0.01 * len(sample.answer or "") for sample in samples]


def settings(folder: Path, name: str) -> dict[str, Any]:
    model = tiny_model_folder(folder / "model", alphabet=ALPHABET, vocab_size=16, seed=2)
    return dict(
        model_name_or_path=str(model), output_dir=str(folder / name), strategy="single", engine_type="hf", rollout_batch_size=4,
        n_samples_per_prompt=2, train_batch_size=8, prompt_max_len=16, generate_max_len=6, max_steps=2, plot_every=0, loggers=["jsonl"],
        learning_rate=1e-3,
    )  # fmt: skip


def test_functions_and_rows_train_as_files_do(tmp_path: Path) -> None:
    mine = lightrft.train(settings(tmp_path, "memory"), rewards=[brevity], prompts=ROWS, eval_prompts=ROWS[:2])
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    files = {"prompt_data": str(data), "eval_data": [str(data)], "max_eval_samples": 2, "reward": [f"{__file__}:brevity"]}
    theirs = lightrft.train(lightrft.make_config(settings(tmp_path, "files") | files))
    weights = [load_file(Path(summary["model_dir"]) / "model.safetensors") for summary in (mine, theirs)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert mine["eval_after"]["reward"] == theirs["eval_after"]["reward"]
    kept = tmp_path / "memory" / "data" / "prompt_data.jsonl"
    assert [json.loads(line) for line in kept.read_text().splitlines()] == ROWS
    assert f"prompt_data: {kept}" in (tmp_path / "memory" / "config.yaml").read_text()


def test_a_phase_in_five_lines(tmp_path: Path) -> None:
    seen: list[int] = []

    def reward(trainer: lightrft.SPMDPPOTrainer, experience: Any) -> Any:
        seen.append(len(experience))
        return lightrft.SPMDPPOTrainer.reward(trainer, experience)

    lightrft.train(settings(tmp_path, "run"), rewards=[brevity], prompts=[row["prompt"] for row in ROWS], phases={"reward": reward})
    assert seen == [8, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"prompts": ROWS, "config": {"prompt_data": "r.jsonl"}},
            "prompts=... and prompt_data='r.jsonl' are both given; leave one out",
        ),
        ({"rewards": [brevity], "config": {"reward": ["math"]}}, "rewards=... and reward=['math'] are both given; leave one out"),
        ({"rewards": []}, "rewards=[] is not a list of functions"),
        ({"rewards": "math"}, "rewards='math' is not a list of functions"),
        ({"prompts": [{"prompt": "x"}, 7]}, "prompts[1]=7 is a int; expected a text, or a mapping of columns"),
        ({"rewards": [brevity], "prompts": []}, "holds no rows"),
        ({"rewards": [brevity], "prompts": ROWS, "config": {"train_batch_size": 100}}, "train_batch_size=100 does not divide"),
        ({"prompts": ROWS, "config": {"reward": []}}, "reward is empty; name at least one"),
        (
            {"rewards": [brevity], "prompts": ROWS, "config": {"strategy": "fsdp"}},
            "strategy 'fsdp' is not installed: pip install 'lightrft[fsdp]'",
        ),
        (
            {"rewards": [brevity], "prompts": ROWS, "config": {"engine_type": "vllm"}},
            "engine 'vllm' is not installed: pip install 'lightrft[vllm]'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_loads(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    config = settings(tmp_path, "run") | given.pop("config", {})
    with pytest.raises((ConfigError, DataError)) as caught:
        lightrft.train(config, registry=fake_registry(), **given)
    assert words in str(caught.value)


def test_texts_have_no_answers_to_look_for_and_columns_have(tmp_path: Path) -> None:
    texts = [row["prompt"] for row in ROWS]
    lightrft.train(settings(tmp_path, "run") | {"max_steps": 1}, rewards=[brevity], prompts=texts, eval_prompts=texts[:2])
    assert "label_key: ''" in (tmp_path / "run/config.yaml").read_text()
    for given in (
        {"prompts": texts, "config": {"label_key": "solution"}},
        {"prompts": [*texts, {"prompt": "1 =", "anser": "1"}]},
        {"prompts": [{"prompt": text, "level": 1} for text in texts]},
        {"prompts": texts, "eval_prompts": ROWS},
    ):
        config = settings(tmp_path, "refused") | given.pop("config", {})
        with pytest.raises(
            (ConfigError, DataError), match=r"no column '(answer|solution)'.*; label_key names that of the answers, or is empty"
        ):
            lightrft.train(config, rewards=[brevity], **given)


def test_a_row_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0 of prompt_data holds what is no JSON \(a set is no JSON, and no image"):
        lightrft.train(settings(tmp_path, "run"), rewards=[brevity], prompts=[{"prompt": {1, 2}}])


def test_every_public_name_has_its_type() -> None:
    tree = ast.parse(Path(lightrft.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == lightrft.PUBLIC, "what type checkers see is what an import gives"
