"""Every setting with every kind of value that it cannot have, as a recipe and as a flag: one line that names it, never a traceback."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightrft
from lightrft.cli.flags import parse
from lightrft.config.load import make_config, read_recipe
from lightrft.config.reward_checks import check_rewards
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, UserError
from lightrft.plugins.registry import Registry

BAD: dict[str, Any] = {
    "a mapping in a list": [{"a": 1}],
    "a set of nothing": {"x": None},
    "nothing": None,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "a list of lists": [[1], [2]],
    "bytes": b"\xff",
}
NUMBERS: dict[str, Any] = {"a word": "many", "minus one": -1, "half": -0.5, "yes": True, "an empty text": "", "a list": [1]}


def kind(name: str) -> str:
    default = Config.model_fields[name].default
    return "number" if isinstance(default, (int, float)) and not isinstance(default, bool) else type(default).__name__


CASES = [(name, words, value) for name in Config.model_fields if name != "plugins" for words, value in BAD.items()]
CASES += [(name, words, value) for name in Config.model_fields if kind(name) == "number" for words, value in NUMBERS.items()]
MAY = {
    "minus one": {"sft_target_reward", "eval_right_at", "eval_top_k"},
    "half": {"sft_target_reward", "eval_right_at"},
    "a set of nothing": {"chat_template_kwargs", "engine_args"},
}
"""What is right there: any number, or as in the rollout, or a mapping of anything."""


def problems(values: dict[str, Any]) -> list[str]:
    try:
        make_config(values)
    except ConfigError as error:
        return error.problems
    return []


def test_there_are_enough_cases() -> None:
    assert len(CASES) > 1000


@pytest.mark.parametrize("words", [*BAD, *NUMBERS])
def test_a_value_that_cannot_be_is_one_line_with_its_setting(words: str) -> None:
    for name, what, value in CASES:
        if what != words or name in MAY.get(words, ()):
            continue
        found = problems({name: value})
        assert found, f"{name}={value!r} is taken"
        assert all("\n" not in line and name in line and len(line) < 400 for line in found), found


@pytest.mark.parametrize("name", Config.model_fields)
def test_a_name_that_is_nearly_right_is_told_with_the_right_one(name: str) -> None:
    wrong = name + "x"
    [line] = problems({wrong: 1})
    assert wrong in line and f"did you mean {name!r}?" in line


def test_recipes_with_random_changes_are_read_or_told(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "recipe.yaml"
    good = yaml.safe_dump({name: field.default for name, field in Config.model_fields.items() if name != "plugins"}).encode()
    for _ in range(400):
        text = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            place = draw.randrange(len(text))
            text[place : place + draw.randint(0, 3)] = bytes(
                draw.choices(b"\0\t\n \"'#&*!|>%@`{}[]:,-?0123456789abcxyz\xff\xc3", k=draw.randint(0, 3))
            )
        path.write_bytes(text)
        with contextlib.suppress(UserError):  # anything else fails here
            make_config(read_recipe(path))


def test_flags_of_random_words_are_read_or_told() -> None:
    draw = random.Random(0)
    names = [f"--{name}" for name in Config.model_fields] + ["--", "-", "--config", "--nproc-per-node", "--max-restarts", "--json", "--x"]
    words = [
        "",
        "1",
        "-1",
        "1e999",
        "nan",
        "\0",
        "ä",
        "--",
        "[1",
        "{a: }",
        "*",
        "&a",
        "!!python/object:os.system",
        " ",
        "\n",
        "0x",
        "1_000",
    ]
    for _ in range(300):
        line = [draw.choice(names if draw.random() < 0.6 else words) for _ in range(draw.randint(1, 6))]
        with contextlib.suppress(UserError):
            try:
                make_config(parse(line, command="train", description="d", nproc_help="h").settings)
            except SystemExit:
                helps = "--help" in line or "-h" in line
                assert helps


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 2**32},
        {"seed": 2**70},
        {"max_steps": 2**70},
        {"chunk_size": 2**63},
        {"stop_token_ids": [2**64]},
        {"train_batch_size": 10**40},
    ],
)
def test_numbers_beyond_what_libraries_hold_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="input should be less than or equal to"):
        make_config(settings)


@pytest.mark.parametrize("entry", ["x", "rollout", "rollout=", "=3", "rollout=1=2"])
def test_a_limit_that_is_none_is_told_at_every_door(entry: str) -> None:
    with pytest.raises(UserError, match="phase_timeouts="):
        lightrft.train({"phase_timeouts": [entry], "strategy": "single", "engine_type": "hf"})


@pytest.mark.parametrize("reward", ["exact_match", "math"])
def test_a_reward_that_needs_an_answer_without_a_column_of_answers(reward: str) -> None:
    told = list(check_rewards(make_config({"reward": [reward], "label_key": ""}), registry=Registry.discover()))
    assert told == [f"reward={reward!r} needs an answer for each row, and label_key is empty; set it to the column of the answers"]
    assert list(check_rewards(make_config({"reward": [reward]}), registry=Registry.discover())) == []
