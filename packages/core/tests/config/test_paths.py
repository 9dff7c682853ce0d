"""Every setting that holds a path writes `~` out, in whatever way it came in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from lightrft.config.arguments import add_arguments
from lightrft.config.load import as_config, make_config, read_recipe
from lightrft.config.schema import Config
from lightrft.errors import ConfigError

PATHS = (
    "model_name_or_path",
    "critic_model_name_or_path",
    "prompt_data",
    "images_folder",
    "eval_out",
    "output_dir",
    "log_dir",
    "resume_from",
)
WORDS = [
    ("eval_data", "~/e.jsonl", "/home/e.jsonl"),
    ("eval_data", "test=~/e.jsonl", "test=/home/e.jsonl"),
    ("eval_data", "e~/x.jsonl", "e~/x.jsonl"),
    ("reward", "~/r.py:f", "/home/r.py:f"),
    ("reward", "model:~/rm", "model:/home/rm"),
    ("reward", "judge=model:~/rm", "judge=model:/home/rm"),
    ("reward", "r=trl:~/r.py:f", "r=trl:/home/r.py:f"),
    ("reward", "judge=http://localhost:80/~user", "judge=http://localhost:80/~user"),
]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home")


@pytest.mark.parametrize("name", PATHS)
def test_a_path(name: str, tmp_path: Path) -> None:
    ways: list[Config] = [make_config({name: "~/a b"}), Config(**{name: "~/a b"})]
    ways.append(as_config(add_arguments(argparse.ArgumentParser()).parse_args([f"--{name}", "~/a b"])))
    (tmp_path / "r.yaml").write_text(f"{name}: ~/a b\n")
    ways.append(make_config(read_recipe(tmp_path / "r.yaml")))
    assert {getattr(config, name) for config in ways} == {"/home/a b"}
    for plain in ("latest", "a/~/b", "/x", "owner/name", ""):
        assert getattr(make_config({name: plain}), name) == plain


@pytest.mark.parametrize("name", PATHS)
def test_variables_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOT_THERE", raising=False)
    for written, expected in (("$SCRATCH/a", "/scratch/me/a"), ("a/${SCRATCH}b", "a//scratch/meb"), ("cost$5", "cost$5"), ("a$", "a$")):
        assert getattr(make_config({name: written}), name) == expected
    for written in ("$NOT_THERE/a", "a/${NOT_THERE}"):
        with pytest.raises(ConfigError, match=r"there is no environment variable NOT_THERE; set it, or write it out"):
            make_config({name: written})


def test_variables_in_words_that_hold_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D", "/data")
    asked = {"eval_data": ["test=$D/e.jsonl"], "reward": ["r=trl:${D}/r.py:f", "judge=http://host:80/$D"], "prompt_data": "a=$D/a,$D/b"}
    config = make_config(asked)
    assert (config.eval_data, config.reward) == (["test=/data/e.jsonl"], ["r=trl:/data/r.py:f", "judge=http://host:80/$D"])
    assert config.prompt_data == "a=/data/a,/data/b"


@pytest.mark.parametrize(("name", "word", "expected"), WORDS)
def test_a_word_that_holds_a_path(name: str, word: str, expected: str) -> None:
    assert getattr(make_config({name: [word]}), name) == [expected]


def test_no_setting_with_a_path_is_forgotten() -> None:
    """Whatever speaks of a file, a folder or a path in its description is expanded, or is known to hold none."""
    without = {"prompt_template", "sft_strip"}
    for name, info in Config.model_fields.items():
        words = (info.description or "").replace("`", " ").lower().replace(",", " ").replace(".", " ").split()
        takes_text = info.annotation is str or name in ("eval_data", "reward")
        if name in without or not takes_text or not {"file", "folder", "path", "files"} & set(words):
            continue
        value: Any = ["~/x"] if name in ("eval_data", "reward") else "~/x"
        found = getattr(make_config({name: value}), name)
        assert found in ("/home/x", ["/home/x"]), name


def test_a_user_who_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="output_dir='~nobody-here/run': there is no home folder of ~nobody-here; write the path out"):
        make_config({"output_dir": "~nobody-here/run"})


def test_a_recipe_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("seed: 3\n")
    assert read_recipe("~/r.yaml") == {"seed": 3}
