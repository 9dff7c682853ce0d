"""Flags are read as typed; every unknown word is named with the nearest known one."""

from __future__ import annotations

import pytest

from lightrft.cli.flags import Flags, parse
from lightrft.errors import ConfigError


def flags(*words: str) -> Flags:
    return parse(words, command="train", description="", nproc_help="")


def test_settings_stay_text_and_own_flags_are_apart() -> None:
    found = flags("--config", "r.yaml", "--nproc-per-node", "4", "--json", "--seed", "3", "--reward", "math", "format", "--fsdp")
    assert found == Flags(settings={"seed": "3", "reward": ["math", "format"], "fsdp": True}, recipe="r.yaml", nproc=4, as_json=True)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--engine-type=hf"], {"engine_type": "hf"}),
        (["--no-use-mp-opt"], {"use_mp_opt": False}),
        (["--disable-engine-sleep"], {"enable_engine_sleep": False}),
        (["--output-dir", "a--b-c"], {"output_dir": "a--b-c"}),
        (["--zero_stage", "3"], {"zero_stage": 3}),
    ],
)
def test_names_may_be_spelled_with_dashes(words: list[str], settings: dict[str, object]) -> None:
    found = flags(*words)
    assert found.settings == settings
    assert not found.problems


def test_unknown_flags_are_all_named_with_the_nearest() -> None:
    problems = flags("--zero_stag", "2", "--seed", "1", "--trian-batch-size=3", "--qqq").problems
    assert problems == [
        "unknown flag '--zero_stag'; did you mean '--zero_stage'?",
        "unknown flag '--trian-batch-size'; did you mean '--train_batch_size'?",
        "unknown flag '--qqq'",
    ]


def test_a_stray_word() -> None:
    assert flags("sort").problems == ["unexpected argument 'sort'; settings have the form --name value, lists --name one,two"]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_ranks_that_is_none(text: str) -> None:
    found = flags(f"--nproc-per-node={text}")
    assert found.nproc is None
    assert found.problems == [f"--nproc-per-node {text!r}: give a whole number of ranks, at least 1"]


def test_a_flag_without_its_value() -> None:
    with pytest.raises(ConfigError, match=r"argument --seed: expected one argument \(`lightrft train --help`"):
        flags("--seed")
