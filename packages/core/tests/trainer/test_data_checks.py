"""Data that cannot be used, and rewards that they name and that are not there, are told before a model loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.load import make_config
from lightrft.errors import ConfigError
from lightrft.testing.fake_strategy import fake_registry
from lightrft.trainer.data_checks import check_data
from lightrft.trainer.run import evaluate, train


def settings(folder: Path, *kinds: Any, **changes: Any) -> dict[str, Any]:
    rows = [{"prompt": str(n), "answer": "1", "kind": kind} for n, kind in enumerate(kinds)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "reward": ["exact_match", "judge=http://127.0.0.1:9/score"], "reward_key": "kind", "prompt_data": str(folder / "rows.jsonl"),
        "strategy": "fake", "engine_type": "fake", "output_dir": str(folder / "run"), "model_name_or_path": str(folder / "no_model"),
    }  # fmt: skip
    return values | changes


def test_names_and_lists_of_them_and_no_value_are_fine(tmp_path: Path) -> None:
    check_data(make_config(settings(tmp_path, "judge", ["exact_match", "judge"], None)), training=True)
    check_data(make_config(settings(tmp_path, "anything", reward_key="")), training=True)


def test_every_bad_row_is_told_with_its_place(tmp_path: Path) -> None:
    values = settings(tmp_path, "judge", "exact_mach", [], 7, eval_data=[str(tmp_path / "rows.jsonl")])
    with pytest.raises(ConfigError) as caught:
        check_data(make_config(values), training=True)
    path = tmp_path / "rows.jsonl"
    assert caught.value.problems[:3] == [
        f"{path}:2: kind='exact_mach': there is no reward 'exact_mach'; did you mean 'exact_match'? (rewards: exact_match, judge)",
        f"{path}:3: kind=[] names no reward; expected a name or a list of names (exact_match, judge)",
        f"{path}:4: kind=7 names no reward; expected a name or a list of names (exact_match, judge)",
    ]
    assert len(caught.value.problems) == 6, "the evaluation's rows too"
    with pytest.raises(ConfigError) as caught:
        check_data(make_config(settings(tmp_path, *["nobody"] * 30)), training=True)
    assert len(caught.value.problems) == 21 and caught.value.problems[-1] == "10 more rows are wrong"


def test_a_column_that_no_row_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reward_key='kinds': no row has such a column; did you mean 'kind'"):
        check_data(make_config(settings(tmp_path, None, reward_key="kinds")), training=True)


@pytest.mark.parametrize("command", [train, evaluate])
def test_it_is_told_before_a_model_loads(tmp_path: Path, command: Any) -> None:
    config = make_config(settings(tmp_path, "exact_mach", eval_data=str(tmp_path / "rows.jsonl")))
    with pytest.raises(ConfigError, match="there is no reward 'exact_mach'"):
        command(config, registry=fake_registry())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "rows.jsonl holds no rows; at least one is needed"),
        ("\n \n", "rows.jsonl holds no rows; at least one is needed"),
        ('{"promt": "1", "answer": "2"}\n', "rows.jsonl:1: no column 'prompt'; did you mean 'promt'"),
        ('{"prompt": "1", "answer": "2"}\n{"prompt": "1"}\n', "rows.jsonl:2: no column 'answer'"),
        ('{"prompt": "1", "answer": "2"}\nnope\n', "rows.jsonl:2: not JSON"),
    ],
)
@pytest.mark.parametrize("setting", ["prompt_data", "eval_data"])
def test_a_file_without_what_is_needed(tmp_path: Path, text: str, words: str, setting: str) -> None:
    values = settings(tmp_path, "judge")
    (tmp_path / "good.jsonl").write_text('{"prompt": "1", "answer": "2"}\n')
    (tmp_path / "rows.jsonl").write_text(text)
    values |= {"reward_key": "", "prompt_data": str(tmp_path / "good.jsonl"), setting: str(tmp_path / "rows.jsonl")}
    with pytest.raises(ConfigError) as caught:
        train(make_config(values), registry=fake_registry())
    assert [line for line in caught.value.problems if words in line], caught.value.problems
    assert not (tmp_path / "run").exists()
