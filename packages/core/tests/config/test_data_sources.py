"""`prompt_data` as one source or several, and their weights: every form it is written in, and what is told before a model loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.arguments import add_arguments, override_parser
from lightrft.config.checks import check
from lightrft.config.load import as_config, make_config
from lightrft.errors import ConfigError


@pytest.fixture
def two(tmp_path: Path) -> str:
    for name in ("easy", "hard"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1", "answer": "2"}\n', encoding="utf-8")
    return f"{tmp_path}/easy.jsonl,{tmp_path}/hard.jsonl"


def test_a_recipe_lists_what_a_command_line_writes_with_commas(two: str) -> None:
    assert make_config({"prompt_data": two.split(",")}) == make_config({"prompt_data": two})
    assert make_config({"prompt_data": []}).prompt_data == "" and make_config({"prompt_data": ["a.jsonl"]}).prompt_data == "a.jsonl"
    home = str(Path.home())
    assert make_config({"prompt_data": "~/a.jsonl,b=~/b.jsonl"}).prompt_data == f"{home}/a.jsonl,b={home}/b.jsonl"


@pytest.mark.parametrize("words", [["3,1"], ["3", "1"]])
def test_weights_on_a_command_line(words: list[str]) -> None:
    given = vars(override_parser(argparse.ArgumentParser()).parse_args(["--prompt_data", "a,b", "--prompt_data_weights", *words]))
    assert make_config(given).prompt_data_weights == [3.0, 1.0]
    typed = add_arguments(argparse.ArgumentParser()).parse_args(["--prompt_data", "a,b", "--prompt_data_weights", "3", "1"])
    assert (as_config(typed).prompt_data, as_config(typed).prompt_data_weights) == ("a,b", [3.0, 1.0])


def test_what_passes(make: Any, registry: Any, two: str) -> None:
    for changes in (
        {"prompt_data": two},
        {"prompt_data": two, "prompt_data_weights": [0.7, 0.3]},
        {"prompt_data": two.replace(",", ",h="), "prompt_data_weights": [3, 1]},
        {"prompt_data": "openai/gsm8k:main"},
        {"prompt_data": f"{two},openai/gsm8k", "prompt_data_weights": [1, 1, 2], "eval_data": ["openai/gsm8k:main:test"]},
    ):
        check(make(**changes), registry=registry(), world_size=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt_data_weights": [1]}, "prompt_data_weights has 1 numbers, and prompt_data names 2 sources (easy, hard); give one number"),
        ({"prompt_data_weights": [1, 2, 3]}, "prompt_data_weights has 3 numbers, and prompt_data names 2 sources (easy, hard); give one"),
        ({"prompt_data": "x.jsonl,owner/name"}, "prompt_data='x.jsonl': no such file or folder"),
        ({"prompt_data": "gsm8k"}, "prompt_data='gsm8k': no such file or folder, and not a hub name OWNER/NAME"),
        ({"prompt_data": "a/x.jsonl,b/x.jsonl"}, "prompt_data names 'x' twice ('a/x.jsonl', 'b/x.jsonl'); give one of them as NAME=PATH"),
        ({"prompt_data": "a/x,"}, "prompt_data='a/x,' has nothing between two commas; name the sources as PATH,PATH"),
        ({"eval_data": "owner/name:main"}, "eval_data='owner/name:main' names no split of the dataset; write it out, as owner/name:main:"),
        ({"eval_data": "name"}, "eval_data='name': no such file or folder, and not a hub name OWNER/NAME"),
    ],
)  # fmt: skip
def test_bad_sources(make: Any, problems: Any, two: str, changes: dict[str, Any], expected: str) -> None:
    [line] = problems(make(**{"prompt_data": two} | changes))
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt_data_weights": [1, 0]}, "prompt_data_weights.1=0: input should be greater than 0"),
        ({"prompt_data_weights": "1,-2"}, "prompt_data_weights.1='-2': input should be greater than 0"),
        ({"prompt_data_weights": "1,x"}, "prompt_data_weights.1='x': input should be a valid number"),
        ({"prompt_data_weights": [1, True]}, "prompt_data_weights.1=True: input should be a number, not yes or no"),
        ({"prompt_data_weights": [1, float("inf")]}, "prompt_data_weights.1=inf: input should be a finite number"),
        ({"prompt_data": ["a,b.jsonl", "c.jsonl"]}, "a path of a list may hold no comma, as 'a,b.jsonl' does; rename it"),
        ({"prompt_data": ["a", 1]}, "prompt_data=['a', 1]: input should be a valid string"),
    ],
)
def test_bad_values(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(changes)
    [line] = caught.value.problems
    assert expected in line
