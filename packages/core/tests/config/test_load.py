"""All mistakes in settings and recipes are reported, at once, in words that help."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from lightrft.config import Config, make_config, read_recipe
from lightrft.errors import ConfigError


def problems(**values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    return caught.value.problems


def test_good_values():
    config = make_config({"fsdp": True, "learning_rate": "1e-4", "reward": ["math", "format"]})
    assert (config.fsdp, config.learning_rate, config.reward) == (True, 1e-4, ["math", "format"])


def test_all_problems_at_once():
    found = problems(train_batch_sise=8, micro_train_batch_size="many", top_p=1.5, kl_in="nowhere")
    assert len(found) == 4
    assert "\n".join(found) == str(ConfigError(found))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_sise": 8}, "unknown key 'train_batch_sise'; did you mean 'train_batch_size'? (`lightrft train --help` lists all)"),
        ({"qqqq": 8}, "unknown key 'qqqq' (`lightrft train --help` lists all)"),
        ({"sp_size": "two"}, "sp_size='two': input should be a valid integer, unable to parse string as an integer"),
        ({"sp_size": 0}, "sp_size=0: input should be greater than or equal to 1"),
        ({"sp_size": 1.5}, "sp_size=1.5: input should be a valid integer, got a number with a fractional part"),
        ({"sp_size": True}, "sp_size=True: input should be a number, not yes or no"),
        ({"sp_size": None}, "sp_size=None: input should be a valid integer"),
        ({"learning_rate": 0}, "learning_rate=0: input should be greater than 0"),
        ({"learning_rate": True}, "learning_rate=True: input should be a number, not yes or no"),
        ({"kl_coef": float("nan")}, "kl_coef=nan: input should be a finite number"),
        ({"engine_mem_util": 1.01}, "engine_mem_util=1.01: input should be less than or equal to 1"),
        ({"adam_beta2": 1}, "adam_beta2=1: input should be less than 1"),
        ({"zero_stage": 4}, "zero_stage=4: input should be 0, 1, 2 or 3"),
        ({"zero_stage": True}, "zero_stage=True: input should be a number, not yes or no"),
        ({"kl_estimator": "k9"}, "kl_estimator='k9': input should be 'k1', 'k2' or 'k3'"),
        ({"fsdp": "perhaps"}, "fsdp='perhaps': input should be a valid boolean, unable to interpret input"),
        ({"strategy": 3}, "strategy=3: input should be a valid string"),
        ({"reward": "math"}, "reward='math': input should be a valid list"),
        ({"reward": ["math", 3]}, "reward.1=3: input should be a valid string"),
        ({"reward_weights": [1, False]}, "reward_weights.1=False: input should be a number, not yes or no"),
        ({"seed": -1}, "seed=-1: input should be greater than or equal to 0"),
    ],
)
def test_one_problem(values, message):
    assert problems(**values) == [message]


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_what_is_saved_can_be_loaded_again(tmp_path):
    config = make_config({"fsdp": True, "reward": ["a.b:c"], "kl_coef": 0.25})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()), encoding="utf-8")
    assert make_config(read_recipe(path)) == config


def recipe_problem(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    (only,) = caught.value.problems
    assert "\n" not in only
    assert repr(str(path)) in only
    return only


def test_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("# a comment\nfsdp: true\nreward: [math]\nlearning_rate: 1e-4\n", encoding="utf-8")
    assert make_config(read_recipe(path)) == Config(fsdp=True, reward=["math"], learning_rate=1e-4)


def test_empty_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("# nothing yet\n", encoding="utf-8")
    assert read_recipe(path) == {}


def test_missing_recipe(tmp_path):
    assert "No such file or directory; give the path of a YAML file" in recipe_problem(tmp_path / "none.yaml")
    assert "Is a directory" in recipe_problem(tmp_path)


def test_what_is_no_file_of_settings_is_one_line(tmp_path: Path) -> None:
    """A pipe that nobody writes to was waited for, and a device without an end was read until the memory was full."""
    os.mkfifo(tmp_path / "r.yaml")
    for path, words in (
        (tmp_path / "r.yaml", "is a named pipe"),
        ("/dev/zero", "is longer than 4194304 characters"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            read_recipe(path)
        assert len(caught.value.problems) == 1 and "; give the path of a YAML file" in caught.value.problems[0]
    assert read_recipe(os.devnull) == {}
    read, write = os.pipe()  # as a shell's <(...)
    os.write(write, b"sp_size: 2")
    os.close(write)
    assert read_recipe(f"/dev/fd/{read}") == {"sp_size": 2}
    os.close(read)


@pytest.mark.parametrize("text", ["fsdp: [1, 2", "fsdp: true\n  seed: 3", "a: b: c", "\tfsdp: true", "fsdp: !!python/object:os.system x"])
def test_malformed_recipe_names_the_line(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    found = recipe_problem(path)
    assert "is not YAML: " in found
    assert "line " in found


def test_recipe_that_is_not_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"fsdp: \xff\xfe")
    assert "is not YAML: " in recipe_problem(path)


@pytest.mark.parametrize(("text", "kind"), [("- fsdp", "list"), ("fsdp", "str"), ("3", "int")])
def test_recipe_that_is_no_mapping(tmp_path, text, kind):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    assert f"found a {kind}, expected lines of the form `key: value`" in recipe_problem(path)


def test_a_key_that_stands_twice(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("seed: 1\nfsdp: true\nseed: 2\n", encoding="utf-8")
    assert "key 'seed' stands on line 1 and again on line 3; remove one" in recipe_problem(path)


REFUSED_BY_THE_CONSTRUCTOR = ["2026-02-30", "0b_", "0x_", "!!int x", "!!float x", "!!bool x", "!!timestamp 1", "9" * 5000, "[" * 3000]


@pytest.mark.parametrize("value", REFUSED_BY_THE_CONSTRUCTOR, ids=lambda value: value[:12])
def test_a_value_that_the_reader_cannot_make_is_one_line_with_its_place(value: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"seed: 1\noutput_dir: {value}\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    [line] = caught.value.problems
    assert line.startswith(f"config {str(path)!r} is not YAML: ") and "\n" not in line and len(line) < 400
    assert "line 2" in line or "nested too deeply" in line
