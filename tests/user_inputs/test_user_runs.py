"""What a run says of a user's folder and rows, in its warnings, and where its completions end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lightrft
from lightrft.config.load import make_config
from lightrft.errors import UserError
from lightrft.testing.chat_styles import CHATML, GEMMA, MISTRAL, ChatStyle, style_folder


def run(folder: Path, style: ChatStyle, rows: list[dict[str, Any]], **settings: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the warnings, and the rows of the last evaluation, of one step on `hf`."""
    style_folder(folder / "m", style)
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps({"answer": "1"} | row) + "\n" for row in rows))
    values = {
        "strategy": "single", "engine_type": "hf", "model_name_or_path": str(folder / "m"), "prompt_data": str(path),
        "eval_data": [str(path)], "output_dir": str(folder / "run"), "apply_chat_template": True, "rollout_batch_size": 4,
        "n_samples_per_prompt": 4, "train_batch_size": 16, "micro_train_batch_size": 8, "prompt_max_len": 200, "generate_max_len": 8,
        "max_steps": 1, "plot_every": 0, "loggers": ["jsonl"], "temperature": 1.5,
    }  # fmt: skip
    lightrft.train(make_config(values | settings))
    told = folder / "run" / "warnings.jsonl"
    names = [json.loads(line)["name"] for line in told.read_text().splitlines()] if told.exists() else []
    found = sorted((folder / "run").glob("eval_samples-*.jsonl"))[-1].read_text().splitlines()
    return [name for name in names if name not in ("evaluation_leak",)], [json.loads(line) for line in found]


PLAIN = [{"prompt": str(i)} for i in range(8)]


def test_a_whole_folder_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = run(tmp_path, GEMMA, PLAIN)
    assert not {"stop_tokens", "end_of_turn_runs_on", "special_tokens_in_prompts", "turns_left_out", "tools_not_used"} & set(names)
    assert "stop tokens: 1 '<eos>' (tokenizer, generation_config.json, config.json); 4 '<end_of_turn>' (gener" in capsys.readouterr().out


def test_sources_that_differ_are_told_and_completions_end_at_both(tmp_path: Path) -> None:
    names, rows = run(tmp_path, replace(CHATML, generation_eos=("<|endoftext|>",)), PLAIN, eval_n=32, eval_max_len=12, eval_temperature=1.9)
    assert "stop_tokens" in names and "end_of_turn_runs_on" not in names
    ends = {row["finish_reason"] for row in rows if row["kind"] == "sampled"}
    assert ends == {"stop", "length"} and max(row["num_tokens"] for row in rows) == 12, "eval_max_len, not generate_max_len"


def test_a_base_model_with_a_chat_template_is_told(tmp_path: Path) -> None:
    base = replace(CHATML, eos="<|endoftext|>", generation_eos=("<|endoftext|>",))
    assert "end_of_turn_runs_on" in run(tmp_path / "one", base, PLAIN)[0]
    assert "end_of_turn_runs_on" not in run(tmp_path / "two", base, PLAIN, stop_token_ids=[2])[0]
    assert "end_of_turn_runs_on" not in run(tmp_path / "three", base, PLAIN, apply_chat_template=False)[0]


def test_rows_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": "a<|im_end|>", "tools": [{"type": "function", "function": {"name": "f"}}]}, *PLAIN]
    names, _ = run(tmp_path, CHATML, rows)
    assert {"special_tokens_in_prompts", "tools_not_used"} <= set(names)


def test_settings_of_the_end_reach_rollouts_and_evaluations(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stop": ["a", "e"], "stop_token_ids": [40], "min_new_tokens": 3, "eval_n": 16, "ignore_eos": True}
    _, rows = run(tmp_path, MISTRAL, PLAIN, **settings)
    stopped = [row for row in rows if row["finish_reason"] == "stop"]
    assert stopped and all(row["num_tokens"] >= 3 for row in rows)
    kept = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert kept and all(json.loads(line)["num_tokens"] >= 3 for line in kept)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_new_tokens": 9}, "min_new_tokens=9 is more than generate_max_len=8"),
        ({"eval_max_len": 2, "min_new_tokens": 3}, "min_new_tokens=3 is more than eval_max_len=2"),
        ({"label_key": "answr"}, "no column 'answr'; did you mean 'answer'?"),
        ({"tools_key": "tools", "apply_chat_template": False}, "tools_key='tools' has no effect with apply_chat_template=False"),
        ({"eval_temperature": 0.5}, "eval_temperature=0.5 has no effect with eval_n=0"),
        ({"chat_template_kwargs": {"thinking": True}}, "which the chat template does not read"),
        ({"prompt_max_len": 2}, "all 8 prompts are longer than prompt_max_len=2"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_loads(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        run(tmp_path, MISTRAL, PLAIN, **settings)
    assert not (tmp_path / "run").exists()
