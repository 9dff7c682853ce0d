"""The demo's task: the data are right, disjoint and repeatable; the settings are the packaged recipe."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from lightrft.cli import flags, show
from lightrft.config.checks import check
from lightrft.data.chat import ChatSettings
from lightrft.data.turns import TurnWriter
from lightrft.demo.calculator import Calculator, tokenizer_with_tools
from lightrft.demo.calculator import make_row as product_row
from lightrft.demo.colours import COLOURS, write_colours
from lightrft.demo.task import DATA_FOLDER, TASKS, demo_config, make_row, recipe, write_data
from lightrft.demo.walks import make_row as walk_row
from lightrft.demo.walks import write_walks
from lightrft.errors import ConfigError
from lightrft.plugins.registry import Registry
from lightrft.rollout.environment import Continue, Turn
from lightrft.rollout.gridworld import Gridworld


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_by_hand():
    assert make_row([3, 1, 4, 1, 5, 9]) == {"prompt": "3 1 4 1 5 9 =", "answer": "1 1 3 4 5 9"}


def test_the_answers_are_the_digits_in_order(tmp_path):
    for path in write_data(tmp_path, seed=0, num_train=50, num_eval=20):
        for row in rows_of(path):
            digits = row["prompt"].removesuffix(" =").split(" ")
            assert len(digits) == 6
            assert row["answer"].split(" ") == sorted(digits)


def test_no_row_comes_twice(tmp_path):
    train, held_out = write_data(tmp_path, seed=1)
    prompts = [row["prompt"] for path in (train, held_out) for row in rows_of(path)]
    assert (len(rows_of(train)), len(rows_of(held_out))) == (4096, 256)
    assert len(set(prompts)) == len(prompts)


def test_a_seed_gives_its_own_data_again(tmp_path):
    def texts(name: str, seed: int) -> list[str]:
        return [path.read_text() for path in write_data(tmp_path / name, seed=seed, num_train=9, num_eval=3)]

    assert texts("one", 0) == texts("again", 0)
    assert texts("one", 0) != texts("other", 1)


def test_more_rows_than_there_are(tmp_path):
    with pytest.raises(ValueError, match="there are 1000000 rows of 6 digits"):
        write_data(tmp_path, seed=0, num_train=999_999, num_eval=2)


def test_the_longest_row_fits_the_recipe(tmp_path):
    row = make_row([0] * 6)
    assert len(row["prompt"]) <= recipe()["prompt_max_len"]
    assert len(row["answer"]) + 1 <= recipe()["generate_max_len"]


def test_arguments_and_overrides_win_over_the_recipe(tmp_path):
    config = demo_config(run_dir=tmp_path, seed=5, strategy="single", engine="hf", overrides={"max_steps": 2, "seed": 6})
    assert (config.strategy, config.fsdp, config.engine_type, config.output_dir) == ("single", False, "hf", str(tmp_path))
    assert (config.max_steps, config.seed, config.learning_rate) == (2, 6, recipe()["learning_rate"])
    assert Path(config.prompt_data) == tmp_path / DATA_FOLDER / "train.jsonl"
    assert demo_config(run_dir=tmp_path, seed=0, strategy="fsdp", engine="hf", overrides={}).fsdp


def test_an_unknown_override(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        demo_config(run_dir=tmp_path, seed=0, strategy="single", engine="hf", overrides={"max_step": 2})


def test_the_recipe_can_be_run(tmp_path):
    run_dir = tmp_path / "run"
    write_data(run_dir / DATA_FOLDER, seed=0, num_train=16, num_eval=4)
    config = demo_config(run_dir=run_dir, seed=0, strategy="single", engine="hf", overrides={})
    check(config, registry=Registry.discover(), world_size=1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("task", TASKS)
def test_the_sizes_divide(task, world_size):
    values = recipe(task)
    assert values["rollout_batch_size"] % world_size == 0
    assert values["train_batch_size"] % (values["micro_train_batch_size"] * world_size) == 0
    assert (values["rollout_batch_size"] * values["n_samples_per_prompt"]) % values["train_batch_size"] == 0


def test_the_pictures_are_of_the_colours_that_the_rows_name(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pictures are Pillow's")
    train, held_out = write_colours(tmp_path, seed=1, num_train=6, num_eval=2)
    again, _ = write_colours(tmp_path / "again", seed=1, num_train=6, num_eval=2)
    assert train.read_text() == again.read_text()
    rows = [json.loads(line) for path in (train, held_out) for line in path.read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        [name] = row["images"]
        colours = {letter[0]: colour for letter, colour in COLOURS.items()}
        counts = sorted(image.open(tmp_path / name).getcolors(256))
        assert all(abs(a - b) <= 15 for a, b in zip(counts[-1][1], colours[row["answer"]], strict=True)), row
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()


def test_the_task_with_images_can_be_run(tmp_path):
    run_dir = tmp_path / "run"
    write_colours(run_dir / DATA_FOLDER, seed=0, num_train=8, num_eval=4)
    config = demo_config(run_dir=run_dir, seed=0, strategy="single", engine="hf", overrides={}, task="vision")
    assert config.model_name_or_path == str(run_dir / DATA_FOLDER / "model")
    check(config, registry=Registry.discover(), world_size=1)


def test_an_episode_to_imitate_is_what_the_template_and_the_tool_write():
    tokenizer = tokenizer_with_tools()
    writer = TurnWriter(tokenizer, chat=ChatSettings(tools=Calculator.tools()))
    call, answer = '<tool_call>{"name": "multiply", "arguments": {"a": 37, "b": 52}}</tool_call>', "1924"
    rows = [product_row(37, 52, random.Random(seed)) for seed in range(8)]
    [form] = {row["form"] for row in rows if row["form"].startswith("<tool_call>")}
    turn = tokenizer(call)["input_ids"] + [tokenizer.eos_token_id]
    [said] = writer.calls(call, call)
    assert (said.name, dict(said.arguments), said.problem) == ("multiply", {"a": 37, "b": 52}, "")
    told = writer.after(turn, [{"role": "tool", "name": "multiply", "tool_call_id": "call00000", "content": answer}])
    assert tokenizer(form)["input_ids"] == [*turn, *told, *tokenizer(answer)["input_ids"]]
    assert len(turn) <= recipe("tools")["turn_max_len"]
    assert {row["form"] for row in rows} - {form} and all(1000 <= int(row["form"]) < 2000 for row in rows if row["form"] != form)


def test_a_walk_to_imitate_is_what_the_environment_tells():
    row = walk_row((0, 0), (2, 1), random.Random(0))
    assert (row["prompt"], row["start"], row["goal"], row["size"]) == ("0,0>2,1:", [0, 0], [2, 1], 3)
    moves, places = row["walk"][0] + "".join(re.findall(r": (.)", row["walk"])), re.findall(r" (\d,\d): ", row["walk"])
    world, told = Gridworld(), []
    world.start(row)
    for number, move in enumerate(moves):
        answer = world.step(Turn(number=number, token_ids=(), text=move, raw_text=move, finish_reason="length", is_last=number == 4))
        told += [answer.text.strip(" :")] if isinstance(answer, Continue) else []
    assert told == places and len(moves) == recipe("gridworld")["max_turns"]


def test_no_pair_of_fields_is_both_trained_and_evaluated(tmp_path):
    train, held_out = ({row["prompt"] for row in rows_of(path)} for path in write_walks(tmp_path, seed=3, num_train=400))
    assert (len(train), len(held_out), train & held_out) == (56, 16, set())


def test_the_flag_names_every_task():
    assert set(flags.TASKS) == set(TASKS)


@pytest.mark.parametrize("task", ["tools", "gridworld"])
def test_a_task_of_several_turns_can_be_run(tmp_path, task):
    run_dir = tmp_path / "run"
    TASKS[task].write(run_dir / DATA_FOLDER, seed=0, num_train=32, num_eval=4)
    config = demo_config(run_dir=run_dir, seed=0, strategy="single", engine="hf", overrides={}, task=task)
    check(config, registry=Registry.discover(), world_size=1)


@pytest.mark.parametrize("model", [None, "runs/one/model"])
def test_a_demo_that_was_stopped_names_no_model_to_evaluate(capsys, model):
    show.demo({"run_dir": "runs/one", "model_dir": model, "accuracy_before": 0.1, "accuracy_after": 0.2, "steps": 3, "seconds": 4.0})
    told = capsys.readouterr().out
    assert ("lightrft eval" in told) == (model is not None) and "None" not in told
