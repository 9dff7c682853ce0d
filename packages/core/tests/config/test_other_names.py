"""Names of other libraries are answered by the name here: on the command line, in a recipe, and on the page of the docs."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from lightrft.cli.flags import parse
from lightrft.config import other_names, over_recipe
from lightrft.config.load import make_config
from lightrft.config.other_names import LIBRARIES
from lightrft.config.over_recipe import beside_flags
from lightrft.config.schema import Config
from lightrft.errors import ConfigError

ANSWERS = {
    "--beta": "kl_coef", "--lr": "learning_rate", "--save_steps": "save_every", "--num_generations": "n_samples_per_prompt",
    "--actor_learning_rate": "learning_rate", "--pretrain": "model_name_or_path", "--init_kl_coef": "kl_coef", "--remote_rm_url": "reward",
    "--use_wandb": "loggers", "--save-steps": "save_every", "--actor_rollout_ref.rollout.n": "n_samples_per_prompt",
}  # fmt: skip


def problems(*words: str) -> list[str]:
    return parse(words, command="train", description="", nproc_help="").problems


def test_every_answer_is_a_setting_and_no_name_is_one_here_already() -> None:
    for names in LIBRARIES.values():
        for name, (here, note) in names.items():
            assert (here in Config.model_fields) if here else note, name
            assert name not in Config.model_fields


@pytest.mark.parametrize(("flag", "here"), ANSWERS.items())
def test_the_command_line_answers_by_the_name_here(flag: str, here: str) -> None:
    [line] = problems(flag, "1")
    assert f"unknown flag {flag!r}: " in line and f"the name here is {here}" in line


def test_verls_words_and_a_recipe_are_answered_likewise() -> None:
    [line] = problems("data.train_files=x.parquet")
    assert line == "unexpected argument 'data.train_files=x.parquet': verl has it; the name here is prompt_data"
    with pytest.raises(ConfigError) as caught:
        make_config({"beta": 0.1, "trainer.save_freq": 5})
    assert "unknown key 'beta': TRL has it; the name here is kl_coef" in str(caught.value)
    assert "unknown key 'trainer.save_freq': verl has it; the name here is save_every" in str(caught.value)


def test_an_unknown_name_has_its_nearest_as_before() -> None:
    [line] = problems("--learning_rat", "1")
    assert line == "unknown flag '--learning_rat'; did you mean '--learning_rate'?"


@pytest.mark.parametrize(
    ("recipe", "flags", "left"),
    [
        ({"sft_steps": 9, "sft_batch_size": 4, "sft_target_reward": 0.3}, {"sft_steps": "0"}, {"sft_steps"}),
        ({"sft_steps": 9, "sft_batch_size": 4}, {"seed": "1"}, {"sft_steps", "sft_batch_size"}),
        ({"fsdp": True, "fsdp_cpu_offload": True, "bf16": True}, {"strategy": "single"}, {"bf16"}),
        ({"fsdp": True, "fsdp_cpu_offload": True}, {"strategy": "fsdp"}, {"fsdp", "fsdp_cpu_offload"}),
        ({"strategy": "single"}, {"fsdp": True}, set()),
        ({"logprob_gap_action": "correct", "mismatch_level": "sequence", "mismatch_beyond": "mask", "mismatch_floor": 0.1},
         {"logprob_gap_prompts": "0"}, set()),
        ({"kl_coef": 0.1, "kl_target": 6.0, "kl_horizon": 99.0}, {"kl_coef": "0", "kl_in": "loss"}, {"kl_coef"}),
        ({"save_every": 5, "save_every_minutes": 3, "keep_best": 2}, {"save_every": "0"},
         {"save_every", "save_every_minutes", "keep_best"}),
        ({"sft_steps": 9, "sft_batch_size": 4}, {"sft_steps": "many"}, {"sft_steps", "sft_batch_size"}),
    ],
)  # fmt: skip
def test_a_flag_wins_over_a_recipe(recipe: dict[str, Any], flags: dict[str, Any], left: set[str]) -> None:
    assert beside_flags(recipe, flags).keys() == left


@pytest.mark.parametrize("module", [other_names, over_recipe])
def test_the_examples_of_the_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
