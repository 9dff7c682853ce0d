"""All problems of a recipe, the flags and the data are found at once, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightrft.cli.demo import fresh_folder, prepare, result_of
from lightrft.cli.flags import Flags
from lightrft.cli.settings import Mode, checked, merge, typed_alone
from lightrft.cli.start import ranks_for
from lightrft.errors import ConfigError
from lightrft.testing.tiny import tiny_model_folder


def given(settings: dict[str, Any], *, recipe: Path | None = None) -> Flags:
    return Flags(settings=settings, recipe=str(recipe) if recipe else None, nproc=None, as_json=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": str(i), "answer": str(i)}) + "\n" for i in range(4)), encoding="utf-8")
    values = {
        "strategy": "single",
        "engine_type": "hf",
        "scratch_tokenizer": "char",
        "prompt_data": str(data),
        "eval_data": str(data),
        "output_dir": str(tmp_path / "run"),
        "plot_every": 0,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def problems_of(flags: Flags, *, mode: Mode = "train", found: list[str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked(merge(flags, mode=mode), problems=found or [], mode=mode, world_size=1)
    return caught.value.problems


def test_flags_win_over_the_recipe(recipe: Path) -> None:
    flags = given({"seed": "7", "temperature": "0.5"}, recipe=recipe)
    config = checked(merge(flags, mode="train"), problems=[], mode="train", world_size=1)
    assert (config.seed, config.temperature, config.strategy) == (7, 0.5, "single")


def test_all_problems_at_once(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "rewrd: [math]\n", encoding="utf-8")
    flags = given({"seed": "x", "train_batch_size": "7", "reward": ["nope"], "label_key": "anwser"}, recipe=recipe)
    problems = problems_of(flags, found=["unknown flag '--x'"])
    data = str(recipe.parent / "rows.jsonl")
    for start in (
        "unknown flag '--x'",
        "unknown key 'rewrd'; did you mean 'reward'?",
        "seed='x': ",
        "train_batch_size=7 is not divisible",
        "unknown reward 'nope'",
        f"{data}:1: no column 'anwser'; did you mean 'answer'?",
    ):
        assert len([line for line in problems if line.startswith(start)]) >= 1, start


def test_a_wrong_value_brings_no_second_complaint_about_its_default(recipe: Path) -> None:
    assert len(problems_of(given({"train_batch_size": "many", "micro_train_batch_size": "3"}, recipe=recipe))) == 1


def test_a_malformed_line_of_a_data_file_is_named(recipe: Path) -> None:
    data = recipe.parent / "rows.jsonl"
    data.write_text(data.read_text() + "{oops\n", encoding="utf-8")
    problems = problems_of(given({}, recipe=recipe))
    assert problems and all(line.startswith(f"{data}:5: not JSON") for line in problems)


def test_the_column_to_imitate_is_looked_for_only_where_it_is_used(recipe: Path) -> None:
    checked(merge(given({}, recipe=recipe), mode="train"), problems=[], mode="train", world_size=1)
    problems = problems_of(given({"sft_steps": "1", "sft_key": "solution"}, recipe=recipe))
    assert [line for line in problems if "no column 'solution'" in line]


def test_an_evaluation_needs_no_training_data_and_no_batch_sizes(recipe: Path) -> None:
    model = tiny_model_folder(recipe.parent / "model")
    lengths = {"prompt_max_len": "64", "generate_max_len": "64"}
    settings = {"model_name_or_path": str(model), "prompt_data": "gone.jsonl", "train_batch_size": "7", **lengths}
    config = checked(merge(given(settings, recipe=recipe), mode="eval"), problems=[], mode="eval", world_size=1)
    assert config.scratch_tokenizer == "none"
    assert problems_of(given({**settings, "eval_data": ""}, recipe=recipe), mode="eval") == [
        "eval_data is not set; give a .jsonl or .parquet file, a `datasets` folder, or a hub name OWNER/NAME:SUBSET:SPLIT"
    ]


def test_the_demo_leaves_nothing_behind_when_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {"output_dir": str(folder), "strategy": "single", "reward": ["nope"], "seed": "1"}
    with pytest.raises(ConfigError, match="unknown reward 'nope'"):
        prepare(given(settings), world_size=1)
    assert not folder.exists()
    config = prepare(given({**settings, "reward": ["exact_match"], "plot_every": "0"}), world_size=1)
    assert (config.seed, config.strategy, config.engine_type) == (1, "single", "hf")
    assert (folder / "data" / "train.jsonl").is_file()


def test_the_demo_does_not_touch_another_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="holds another run"):
        prepare(given({"output_dir": str(tmp_path), "strategy": "single"}), world_size=1)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_the_demo_in_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output_dir=.*cannot be written: Not a directory"):
        prepare(given({"output_dir": str(tmp_path / "file" / "run"), "strategy": "single"}), world_size=1)


def test_fresh_folders_differ(tmp_path: Path) -> None:
    first = fresh_folder(tmp_path)
    first.mkdir()
    assert fresh_folder(tmp_path) != first


def test_the_demos_result() -> None:
    summary = {
        "eval_before": {"exact_match": 0.25, "reward": 1.0},
        "eval_after": {"exact_match": 0.75, "reward": 2.0},
        "steps": 3,
        "seconds": 9.0,
        "seed": 1,
        "world_size": 2,
        "strategy": "fsdp",
        "engine": "hf",
        "run_dir": "r",
        "model_dir": "r/model",
        "peak_memory_gib": [1.0],
    }
    result = result_of(summary, seconds=12.34)
    assert (result["accuracy_before"], result["accuracy_after"], result["seconds"], result["training_seconds"]) == (0.25, 0.75, 12.3, 9.0)
    assert {"steps", "seed", "world_size", "strategy", "engine", "run_dir"} <= set(result)


def test_a_typed_default_takes_back_what_the_recipe_says_and_asks_for_it_otherwise(recipe: Path) -> None:
    typed = given({"zero_stage": 2}, recipe=recipe)
    with pytest.raises(ConfigError, match="zero_stage=2 needs the capability 'zero_stages', which strategy 'single'"):
        checked(merge(typed, mode="train"), problems=[], mode="train", world_size=1, typed=typed_alone(typed))
    recipe.write_text(recipe.read_text() + "zero_stage: 3\n", encoding="utf-8")
    assert checked(merge(typed, mode="train"), problems=[], mode="train", world_size=1, typed=typed_alone(typed)).zero_stage == 2


def test_a_strategy_of_one_process_gets_one_rank_where_nobody_said_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranks_for("single", otherwise=8) == 1
    assert capsys.readouterr().out == "strategy 'single' runs in one process, so one rank is started, not 8\n"
    assert [ranks_for(name, otherwise=8) for name in (None, "", "no-such-strategy")] == [8, 8, 8]
    assert ranks_for("single", otherwise=1) == 1 and not capsys.readouterr().out
