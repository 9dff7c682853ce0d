"""Names of other libraries are answered by the name here: on the command line, in a recipe, and on the page of the docs."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from lightrft.cli.flags import parse
from lightrft.config import other_names, over_recipe
from lightrft.config.load import make_config
from lightrft.config.other_names import LIBRARIES, named_here
from lightrft.config.over_recipe import beside_flags
from lightrft.config.schema import Config
from lightrft.errors import ConfigError

ANSWERS = {
    "--beta": "kl_coef", "--lr": "learning_rate", "--save_steps": "save_every", "--num_generations": "n_samples_per_prompt",
    "--actor_learning_rate": "learning_rate", "--pretrain": "model_name_or_path", "--init_kl_coef": "kl_coef", "--remote_rm_url": "reward",
    "--use_wandb": "loggers", "--save-steps": "save_every", "--actor_rollout_ref.rollout.n": "n_samples_per_prompt",
}  # fmt: skip

UPSTREAM = """
engine_type text_only save_path save_steps save_hf_ckpt disable_ds_ckpt save_trajectories num_trajectories_to_save
mark_high_entropy_tokens trajectory_analysis print_replay_buffer_stats logging_steps eval_steps ckpt_path max_ckpt_num
max_ckpt_mem load_checkpoint dynamic_sampling overlong_buffer overlong_buffer_len overlong_buffer_penalty_factor num_episodes
rollout_batch_size micro_rollout_batch_size max_epochs prompt_max_len generate_max_len max_len max_samples max_norm l2 ptx_coef
eps_clip loss_agg_mode use_gspo normalize_advantages use_sequence_rewards value_clip lambd gamma micro_train_batch_size
train_batch_size normalize_reward_for_critic top_p temperature freeze_prefix freezing_actor_steps n_samples_per_prompt
save_value_network actor_learning_rate critic_learning_rate lr_warmup_ratio kl_target init_kl_coef kl_estimator adam_betas
reward_running_norm reward_running_norm_minus_mean reward_clip advantages_norm advantage_clip seed local_rank zero_stage
gradient_checkpointing bf16 enable_ema zpg adam_offload actor_init_on_gpu flash_attn aux_loss_coef grad_accum_dtype overlap_comm
gradient_checkpointing_use_reentrant disable_fast_tokenizer disable_logprobs_flashattn no_shard_vit meta_init advantage_estimator
use_kl_loss load_in_4bit lora_rank lora_alpha target_modules lora_dropout pretrain reward_pretrain remote_rm_url critic_pretrain
value_head_prefix prompt_data prompt_data_probs prompt_split eval_data eval_split max_eval_samples pretrain_data
pretrain_data_probs pretrain_split input_key images_key reference_key label_key input_template apply_chat_template system_prompt
use_wandb wandb_org wandb_group wandb_project wandb_run_name use_tensorboard use_ms limit_mm_image_per_prompt use_cpg_loss
high_entropy_token_ratio engine_tp_size engine_mem_util enable_engine_sleep disable_engine_sleep packing_samples sp_size fsdp
use_mp_opt fsdp_cpu_offload log_dir plot_every rm_use_engine rm_engine_cudagraph mixed_mm_data fused_linear_logprob chunk_size
"""
"""All flags of upstream LightRFT's examples/gsm8k_geo3k/train_colocate.py, with those that its `add_arguments` brings."""


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


def test_every_flag_of_upstream_is_one_here_or_is_answered() -> None:
    others = [flag for flag in UPSTREAM.split() if flag not in Config.model_fields]
    assert (len(UPSTREAM.split()), len(others)) == (133, 82)
    assert not [flag for flag in others if not named_here(flag)]


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
