"""Each cross-check of the settings' values is told, alone and together with the others; nothing is said of what can run."""

from __future__ import annotations

from typing import Any

import pytest

from lightrft.config import Config, make_config
from lightrft.config.checks import check
from lightrft.config.ignored import POINTLESS
from lightrft.errors import ConfigError
from lightrft.plugins import Registry


def told(config: Config, found: Registry, *, world_size: int = 2) -> list[str]:
    """What is wrong with it there; nothing may be."""
    try:
        check(config, registry=found, world_size=world_size)
    except ConfigError as error:
        return error.problems
    return []


def test_a_good_configuration_passes(make, registry):
    assert told(make(), registry()) == []
    able = make(engine_tp_size=2, sp_size=2, zero_stage=3, bf16=True, engine_sleep_level=2)
    assert told(able, registry(), world_size=8) == []


def test_everything_at_once(make, problems):
    config = make(engine_tp_size=3, train_batch_size=7, prompt_data="none.jsonl", reward=["nope"], strategy="nope", kl_in="reward")
    assert len(problems(config)) == 7  # 7 divides neither by 4 x 2 nor into 1024


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({"engine_tp_size": 3}, 8, "engine_tp_size=3 does not divide the world size 8; possible: 1, 2, 4, 8"),
        (
            {"train_batch_size": 128, "micro_train_batch_size": 3},
            2,
            "train_batch_size=128 is not divisible by micro_train_batch_size x world size = 3 x 2 = 6; use a multiple of 6",
        ),
        (
            {"rollout_batch_size": 15, "n_samples_per_prompt": 8, "train_batch_size": 120},
            2,
            "rollout_batch_size=15 is not divisible by the world size 2; use a multiple of it",
        ),
        (
            {"rollout_batch_size": 16, "n_samples_per_prompt": 2, "train_batch_size": 24},
            2,
            "train_batch_size=24 does not divide the samples of one rollout, rollout_batch_size x n_samples_per_prompt = 16 x 2 = 32",
        ),
    ],
)
def test_sizes(make, changes, world_size, message, problems):
    assert problems(make(**changes), world_size=world_size) == [message]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scratch_hidden": 100, "scratch_heads": 4},
            "scratch_hidden=100 is not a multiple of 2 x scratch_heads = 8 (rotary halves each head)",
        ),
        ({"scratch_heads": 4, "scratch_kv_heads": 3}, "scratch_kv_heads=3 does not divide scratch_heads=4"),
    ],
)
def test_scratch_sizes(make, changes, message, problems):
    assert problems(make(model_name_or_path="", scratch_tokenizer="char", **changes)) == [message]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 rewards (exact_match); give one each"),
        ({"reward": []}, "reward is empty; name at least one (`lightrft plugins` lists them)"),
        (
            {"kl_coef": 0.1, "kl_estimator": "k1"},
            "kl_estimator='k1' with kl_in='loss' has a gradient of zero mean; use kl_in='reward', or kl_estimator k2 or k3",
        ),
        ({"prompt_template": "Q:"}, "prompt_template='Q:' does not contain {prompt}"),
        (
            {"n_samples_per_prompt": 1, "train_batch_size": 128},
            "advantage_estimator='grpo' compares the samples of one prompt: n_samples_per_prompt=1 gives it nothing; use at least 2, "
            "or an estimator that compares with something else (gae, reinforce_pp, remax)",
        ),
    ],
)
def test_choices(make, changes, message, problems):
    assert problems(make(**changes)) == [message]


# Something other than the default, for each setting that may be without effect.
OTHER = {
    "dynamic_sampling_tries": 7,
    "overlong_penalty": 0.5,
    "chunk_size": 1,
    "kl_estimator": "k2",
    "kl_in": "reward",
    "lora_alpha": 8.0,
    "lora_sync": "merged",
    "lora_target_modules": ["q_proj"],
    "engine_sleep_level": 2,
    "logprob_gap_threshold": 1.0,
    "logprob_gap_action": "correct",
    "mismatch_cap": 3.0,
    "mismatch_level": "sequence",
    "mismatch_beyond": "mask",
    "mismatch_floor": 0.5,
    "kl_target": 6.0,
    "kl_horizon": 5.0,
    "kl_limit": 2.0,
    "scratch_vocab_size": 300,
    "scratch_layers": 3,
    "scratch_hidden": 64,
    "scratch_heads": 2,
    "scratch_kv_heads": 2,
    "trust_remote_code": True,
    "sft_batch_size": 3,
    "sft_learning_rate": 0.5,
    "sft_key": "text",
    "sft_strip": "<<.*?>>",
    "sft_target_reward": 0.5,
    "max_eval_samples": 3,
    "eval_every": 3,
    "eval_n": 4,
    "eval_right_at": 0.5,
    "eval_max_len": 9,
    "system_prompt": "be brief",
    "tools_key": "tools",
    "chat_template_kwargs": {"enable_thinking": False},
    "eval_temperature": 0.5,
    "eval_top_p": 0.5,
    "eval_top_k": 3,
    "keep_checkpoints": 5,
    "keep_best": 2,
    "async_save": True,
    "best_metric": "rollout/reward",
    "best_mode": "min",
    "slice_max_len": 4,
}
EPISODES = {"max_turns": 4, "turn_max_len": 2, "environment_timeout_s": 5.0, "environment_concurrency": 4, "rewritten_turns": "split"}
OTHER |= EPISODES


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in POINTLESS for name in rule.fields])
def test_a_setting_without_effect(make, rule, name, problems):
    off = {"enable_engine_sleep": False, "logprob_gap_prompts": 0}.get(rule.on)
    changes: dict[str, Any] = {name: OTHER[name]} if off is None else {name: OTHER[name], rule.on: off}
    if name == "trust_remote_code":
        changes |= {"model_name_or_path": "", "scratch_tokenizer": "char"}
    if name == "sft_target_reward":
        changes |= {"sft_steps": 0 if rule.on == "sft_steps" else 5}
        changes |= {"eval_data": make().prompt_data if rule.on == "sft_steps" else ""}
    config = make(**changes)
    found = getattr(config, rule.on)
    assert problems(config) == [f"{name}={OTHER[name]!r} has no effect with {rule.on}={found!r}; {rule.remedy}, or leave {name} out"]


def test_the_same_settings_where_they_have_an_effect(make, registry):
    data = make().prompt_data
    on = {
        "fused_linear_logprob": True,
        "kl_coef": 0.1,
        "lora_rank": 4,
        "sft_steps": 5,
        "eval_data": data,
        "scratch_tokenizer": "bpe",
        "model_name_or_path": "",
        "save_every": 5,
        "dynamic_sampling": True,
        "overlong_buffer": 2,
        "apply_chat_template": True,
    }
    elsewhere = {"trust_remote_code", "slice_max_len", *EPISODES}
    assert told(make(**on, **{k: v for k, v in OTHER.items() if k not in elsewhere}), registry()) == []
    assert told(make(environment="mine:Environment", apply_chat_template=True, **EPISODES), registry()) == []
    partial = {"oversample": 1.5, "max_version_lag": 1, "slice_max_len": 4, "mismatch_cap": 3.0, "mismatch_level": "sequence"}
    assert told(make(**partial), registry()) == told(make(**partial, logprob_gap_prompts=0), registry()) == []
    assert told(make(trust_remote_code=True), registry()) == []


def test_a_value_equal_to_its_default_counts_as_not_set_so_that_a_saved_configuration_runs_again(make, registry):
    assert told(make_config(make().model_dump()), registry()) == []
