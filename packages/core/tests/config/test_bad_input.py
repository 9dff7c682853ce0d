"""Each wrong setting is one line that says what was asked and what to do. The list of what people get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightrft.config import make_config
from lightrft.config.checks import check, check_eval, check_trainer
from lightrft.config.load import read_recipe
from lightrft.errors import ConfigError
from lightrft.testing.fake_strategy import fake_registry

NAN = float("nan")


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1", "answer": "2"}) + "\n")
    return {
        "strategy": "fake", "engine_type": "fake", "prompt_data": str(rows), "scratch_tokenizer": "char", "prompt_max_len": 8,
        "generate_max_len": 8, "output_dir": str(tmp_path / "run"), "rollout_batch_size": 32,
        "train_batch_size": 32, "logprob_gap_prompts": 0, "verify_sync_every": 0,
    }  # fmt: skip


def problems(settings: dict[str, Any]) -> list[str]:
    try:
        check(make_config(settings), registry=fake_registry(), world_size=1)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advantage_estimator": "grop"}, "unknown advantage 'grop'; did you mean 'grpo'?"),
        ({"policy_loss": "gpso"}, "unknown policy_loss 'gpso'; did you mean 'gspo'?"),
        ({"loggers": ["tensorbord"]}, "unknown logger 'tensorbord'; did you mean 'tensorboard'?"),
        ({"loggers": ["jsonl", "jsonl"]}, "loggers names 'jsonl' twice"),
        ({"reward": ["exact_mach"]}, "did you mean 'exact_match'?"),
        ({"reward": ["format", "format"]}, "reward 'format' is named twice"),
        ({"reward": ["http://h:1/score", "https://h:1/score"]}, "two rewards are called 'h:1/score'"),
        ({"max_turns": 3}, "max_turns=3 has no effect with environment=''; set environment, or leave max_turns out"),
        ({"reward": ["environment"]}, "reward='environment' gives what an environment gave, and environment is not set"),
        ({"environment": "singel_turn"}, "unknown environment 'singel_turn'; did you mean 'single_turn'?"),
        ({"environment": "gone.py:Mine"}, "environment='gone.py:Mine': no such file 'gone.py'"),
        ({"environment": "mine:"}, "environment='mine:' is not of the form module:Class or path/to/file.py:Class"),
        ({"environment": "a:B", "reward_while_generating": True}, "reward_while_generating=True rewards completions"),
        ({"environment": "a:B", "advantage_estimator": "remax"}, "advantage_estimator='remax' compares with a greedy completion"),
        (
            {"environment": "a:B", "max_turns": 9},
            "generate_max_len=8 bounds the whole episode, and leaves no token for each of max_turns=9",
        ),
        ({"environment": "a:B", "rewritten_turns": "split"}, "rewritten_turns='split' is of turns that a chat template writes"),
        (
            {"environment": "a:B", "rewritten_turns": "split", "apply_chat_template": True, "tools_key": "tools"},
            "and tools_key='tools' names others",
        ),
        (
            {"environment": "a:B", "turn_credit": "turn", "reward": ["environment"]},
            "turn_credit='turn' has no effect with advantage_estimator='grpo'; leave it out (gae, reinforce_pp, reinforce_pp_baseline",
        ),
        ({"turn_credit": "turn", "advantage_estimator": "reinforce_pp"}, "turn_credit='turn' is of rewards of an environment"),
        (
            {"environment": "a:B", "turn_credit": "turn", "advantage_estimator": "reinforce_pp"},
            "turn_credit='turn' puts the reward `environment` where it was earned; name it in reward",
        ),
        (
            {
                "environment": "a:B",
                "turn_credit": "turn",
                "advantage_estimator": "reinforce_pp",
                "reward": ["environment"],
                "normalize_rewards": True,
            },
            "normalize_rewards=True changes sums of rewards, and turn_credit='turn' takes them apart",
        ),
        ({"environment": "a:B", "turn_max_len": 9}, "turn_max_len=9 is more than generate_max_len=8"),
        (
            {"environment": "a:B", "max_turns": 4, "min_new_tokens": 3, "engine_type": "hf"},
            "min_new_tokens=3 is more than a turn may have, 2 tokens",
        ),
        (
            {"environment": "a:B", "sft_steps": 3, "sft_target_reward": 0.5, "eval_data": "ROWS"},
            "sft_target_reward=0.5 is measured on single completions",
        ),
        ({"lambd": 0.5}, "lambd=0.5 has no effect with advantage_estimator='grpo'; leave it out (gae would read it)"),
        ({"critic_warmup_steps": 3}, "critic_warmup_steps=3 has no effect: advantage_estimator='grpo' has no critic"),
        ({"n_samples_per_prompt": 1}, "n_samples_per_prompt=1 gives it nothing; use at least 2"),
        ({"n_samples_per_prompt": 1, "advantage_estimator": "rloo"}, "n_samples_per_prompt=1 gives it nothing; use at least 2"),
        ({"dual_clip": 0.5}, "dual_clip=0.5 is not above 1"),
        ({"eval_k": [8], "eval_n": 4, "eval_data": "ROWS"}, "eval_k=8 is larger than eval_n=4: pass@8 needs 8 samples"),
        ({"eval_data": "gone.jsonl"}, "eval_data='gone.jsonl': no such file or folder"),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, "kl_estimator='k1' with kl_in='loss' has a gradient of zero mean"),
        ({"overlong_buffer": 9}, "overlong_buffer=9 is more than generate_max_len=8"),
        ({"train_batch_size": 24}, "train_batch_size=24 does not divide the samples of one rollout"),
        ({"learning_rate": -1e-6}, "learning_rate=-1e-06: input should be greater than 0"),
        ({"learning_rate": NAN}, "learning_rate=nan: input should be a finite number"),
        ({"learning_rate": "nan"}, "learning_rate='nan': input should be a finite number"),
        ({"kl_coef": -0.1}, "kl_coef=-0.1: input should be greater than or equal to 0"),
        ({"entropy_coef": NAN}, "entropy_coef=nan: input should be a finite number"),
        ({"stop": ""}, "stop.0='': string should have at least 1 character"),
        ({"stop": ["a", ""]}, "stop.1='': string should have at least 1 character"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0=-1: input should be greater than or equal to 0"),
        (
            {"min_new_tokens": 9, "engine_type": "hf"},
            "min_new_tokens=9 is more than generate_max_len=8; lower it, or raise generate_max_len",
        ),
        (
            {"min_new_tokens": 5, "eval_max_len": 4, "eval_data": "ROWS", "engine_type": "hf"},
            "min_new_tokens=5 is more than eval_max_len=4; lower it, or raise eval_max_len",
        ),
        ({"temperature": 0}, "temperature=0: input should be greater than 0"),
        ({"gamma": 1.5}, "gamma=1.5: input should be less than or equal to 1"),
        ({"eps_clip": -0.2}, "eps_clip=-0.2: input should be greater than or equal to 0"),
        ({"ema_beta": 1}, "ema_beta=1: input should be less than 1"),
        ({"reward_weights": [NAN]}, "reward_weights.0=nan: input should be a finite number"),
        ({"max_epochs": 0}, "max_epochs=0: input should be greater than or equal to 1"),
        ({"seed": 1.5}, "seed=1.5: input should be a valid integer"),
        ({"bf16": "perhaps"}, "bf16='perhaps'"),
        ({"output_dir": "/"}, "output_dir='/' is the root of the file system; give a folder of its own"),
        ({"output_dir": "a\0b"}, "output_dir='a\\x00b' holds a NUL character; give a folder"),
        ({"output_dir": "/tmp/.."}, "output_dir='/tmp/..' is the root of the file system"),
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
    ],
)
def test_one_line_for_one_mistake(good: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    assert problems(good) == []
    changes = {name: good["prompt_data"] if value == "ROWS" else value for name, value in changes.items()}
    [line] = problems(good | changes)
    assert words in line and "\n" not in line


def test_an_evaluation_alone_and_a_trainer_of_a_script_are_told_the_same_of_ends(good: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 64}))
    model = {"model_name_or_path": str(tmp_path), "scratch_tokenizer": "none", "eval_data": good["prompt_data"], "engine_type": "hf"}
    config = make_config(good | model | {"min_new_tokens": 9, "eval_max_len": 4, "stop_token_ids": [64]})
    for look in (check, check_eval, check_trainer):
        with pytest.raises(ConfigError) as caught:
            look(config, registry=fake_registry(), world_size=1)
        told = [line.partition(":")[0].partition(";")[0] for line in caught.value.problems if line.startswith(("min_new", "stop"))]
        assert told == [
            "min_new_tokens=9 is more than generate_max_len=8",
            "min_new_tokens=9 is more than eval_max_len=4",
            "stop_token_ids=[64]",
        ], look.__name__


def test_no_stops_are_no_mistake(good: dict[str, Any]) -> None:
    config = make_config(good | {"stop": [], "stop_token_ids": []})
    assert (config.stop, config.stop_token_ids) == ([], []) and problems(good | {"stop": [], "stop_token_ids": []}) == []


def test_a_loss_of_sequences_beside_weights_of_tokens(good: dict[str, Any]) -> None:
    lines = problems(good | {"policy_loss": "gspo", "logprob_gap_action": "correct"})
    assert any("policy_loss='gspo' has one ratio for a whole completion" in line and "mismatch_level to sequence" in line for line in lines)
    lines = problems(good | {"policy_loss": "gspo", "logprob_gap_action": "correct", "mismatch_level": "sequence"})
    assert not any("one ratio for a whole completion" in line for line in lines)


def test_a_recipe_with_several_unknown_keys_names_each(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lerning_rate: 1\nadvantage_estimater: grpo\nkl_coeff: 0.1\n")
    with pytest.raises(ConfigError) as caught:
        make_config(read_recipe(recipe))
    assert [line.partition(" (")[0] for line in caught.value.problems] == [
        "unknown key 'lerning_rate'; did you mean 'learning_rate'?",
        "unknown key 'advantage_estimater'; did you mean 'advantage_estimator'?",
        "unknown key 'kl_coeff'; did you mean 'kl_coef'?",
    ]
