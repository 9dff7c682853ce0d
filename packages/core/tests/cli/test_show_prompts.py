"""`lightrft show-prompts` shows what the model reads and the rewards see, and refuses what a run would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightrft.cli.prompts import print_report, run_show_prompts
from lightrft.errors import ConfigError, DataError
from lightrft.testing.chat_styles import STYLES, style_folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    style_folder(tmp_path / "m", STYLES["gemma"], more={"temperature": 0.6, "do_sample": True})
    rows = [
        {"q": {"text": "1<end_of_turn>"}, "gold": ["2", "two"]},
        {"q": {"text": "x" * 90}, "gold": "3"},
        {"q": {"text": "4"}, "gold": None},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    values = {
        "model_name_or_path": str(tmp_path / "m"), "prompt_data": str(tmp_path / "d.jsonl"), "input_key": "q.text", "label_key": "gold",
        "apply_chat_template": True, "prompt_max_len": 60, "engine_type": "nowhere", "reward": ["format"], "stop_token_ids": [9],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def test_rows_as_the_model_and_the_rewards_see_them(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, as_json = run_show_prompts(["--config", str(recipe), "--rows", "1", "--json"], description="")
    assert as_json and json.loads(json.dumps(report)) == report
    assert (report["num_prompts"], report["num_too_long"], report["tokenizer_tokens"], report["embedding_rows"]) == (2, 1, 102, 102)
    assert [(t["id"], t["text"], t["sources"]) for t in report["stop_tokens"]] == [
        (1, "<eos>", ["tokenizer", "generation_config.json", "config.json"]),
        (4, "<end_of_turn>", ["generation_config.json", "config.json"]),
        (9, "#", ["stop_token_ids"]),
    ]
    assert report["generation_config_not_used"] == {"temperature": 0.6}
    [row] = report["rows"]
    assert row["text"] == "<bos><start_of_turn>user\n1<end_of_turn><end_of_turn>\n<start_of_turn>model\n"
    assert [t for t, special in zip(row["tokens"], row["special"], strict=True) if special] == [
        "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_turn>", "<end_of_turn>",
    ]  # fmt: skip
    assert row["mask"] == [0] * row["num_tokens"] + [1, 1] and row["tokens"][-2:] == ["2", "<end_of_turn>"]
    seen = row["reward_input"]
    assert (seen["completion"], seen["raw_completion"], seen["answers"]) == ("2", "2<end_of_turn>", ["2", "two"])
    assert seen["row"]["q"] == {"text": "1<end_of_turn>"} and row["rewards"] == ["format"]
    print_report(report)
    text = capsys.readouterr().out
    assert "\u27e6<bos>\u27e7\u27e6<start_of_turn>\u27e7user\n1<end_of_turn>\u27e6<end_of_turn>\u27e7" in text
    assert "generation_config.json, not used: temperature 0.6" in text
    assert "WARNING: 1 of 3 prompts of" in text and "hold special tokens as text" in text


def test_a_row_without_a_label_has_no_example(recipe: Path) -> None:
    report, _ = run_show_prompts(["--config", str(recipe), "--rows=2"], description="")
    row = report["rows"][1]
    assert row["mask"] == [0] * row["num_tokens"] and row["reward_input"]["answer"] is None


def test_a_model_made_from_the_data(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "12", "answer": "3"}\n')
    words = ["--scratch_tokenizer", "char", "--prompt_data", str(tmp_path / "d.jsonl")]
    report, _ = run_show_prompts(words, description="")
    assert [(t["text"], t["sources"]) for t in report["stop_tokens"]] == [("<|end|>", ["tokenizer"])]
    assert report["rows"][0]["tokens"] == ["1", "2", "3", "<|end|>"]


def test_what_is_wrong_is_told_at_once(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_show_prompts(["--config", str(recipe), "--rows", "0", "--label_key", "nope", "--prompt_template", "x"], description="")
    assert [line.split(":")[0] for line in caught.value.problems][:1] == ["--rows '0'"]
    text = "\n".join(caught.value.problems)
    assert "no column 'nope'" in text and "prompt_template='x' does not contain {prompt}" in text
    with pytest.raises(DataError, match="the chat template has no place for a system turn|no place for a system turn"):
        run_show_prompts(["--config", str(recipe), "--system_prompt", "S"], description="")
