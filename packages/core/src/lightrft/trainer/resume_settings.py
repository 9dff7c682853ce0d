"""What a changed setting means to a run that goes on from a checkpoint: refused, told, or nothing. Every setting is in one list."""

from __future__ import annotations

BELONG_TO_STATE = (
    "seed", "strategy", "fsdp", "lora_rank", "lora_alpha", "lora_target_modules", "freeze", "use_mp_opt",
    "advantage_estimator", "policy_loss", "critic_learning_rate", "learning_rate", "lr_scheduler",
    "lr_warmup_steps", "adam_beta1", "adam_beta2", "weight_decay", "ema_beta", "scratch_tokenizer",
    "scratch_vocab_size", "scratch_layers", "scratch_hidden", "scratch_heads", "scratch_kv_heads",
    "sft_steps", "sft_batch_size", "sft_learning_rate", "sft_key", "sft_strip", "sft_target_reward",
    "critic_model_name_or_path", "prompt_data_weights", "oversample", "max_version_lag",
)  # fmt: skip
"""The optimizer, the schedule, the start of the models and the order of the data come from the checkpoint: another value would have no
effect, or a wrong one. It is refused.
"""

OF_NO_CONSEQUENCE = (
    "output_dir", "overwrite_output_dir", "log_dir", "loggers", "plot_every", "save_every",
    "save_every_minutes", "async_save", "stop_grace_s", "keep_checkpoints", "keep_best", "resume_from",
    "generate_timeout_s", "hang_timeout_s", "phase_timeouts", "heartbeat_timeout_s", "on_warning",
    "monitor_steps",
)  # fmt: skip
"""They change nothing of what is learnt, and are not told."""

TAKES_EFFECT = (
    "zero_stage", "fsdp_cpu_offload", "offload_frozen", "fsdp_reshard_after_forward", "adam_offload", "sp_size", "bf16",
    "gradient_checkpointing", "compile", "packing_samples", "max_tokens_per_micro_batch",
    "fused_linear_logprob", "chunk_size", "engine_type", "engine_tp_size", "lora_sync", "engine_mem_util", "engine_args",
    "deterministic_rollout", "enable_engine_sleep", "engine_sleep_level", "weight_bucket_mb", "verify_sync_every",
    "logprob_gap_prompts", "logprob_gap_threshold", "logprob_gap_action", "mismatch_level", "mismatch_cap",
    "mismatch_beyond", "mismatch_floor", "model_name_or_path", "trust_remote_code", "save_dtype",
    "prompt_data", "eval_data", "input_key", "label_key", "prompt_template", "apply_chat_template",
    "images_key", "videos_key", "images_folder", "max_image_pixels", "system_prompt", "tools_key",
    "chat_template_kwargs", "special_tokens_in_prompts", "prompt_max_len",
    "max_eval_samples", "eval_n", "eval_temperature", "eval_top_p", "eval_top_k", "eval_max_len", "eval_k",
    "eval_right_at", "eval_out", "rollout_batch_size", "micro_rollout_batch_size", "n_samples_per_prompt",
    "generate_max_len", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids",
    "min_new_tokens", "ignore_eos", "dynamic_sampling", "dynamic_sampling_tries", "overlong_filter",
    "overlong_buffer", "overlong_penalty", "environment", "max_turns", "turn_max_len", "rewritten_turns",
    "environment_timeout_s", "slice_max_len", "environment_concurrency", "balance_ranks", "mixed_mm_data", "reward", "reward_weights",
    "allow_code_execution", "code_sandbox", "reward_key", "reward_shard_size", "reward_max_len",
    "reward_while_generating", "reward_timeout_s", "reward_retries", "reward_backoff_s",
    "reward_concurrency", "reward_batch_size", "reward_auth_env", "dead_reward_steps", "gamma", "lambd", "turn_credit",
    "whiten_advantages", "normalize_rewards", "critic_warmup_steps", "value_clip", "loss_aggregation",
    "eps_clip", "eps_clip_low", "eps_clip_high", "dual_clip", "entropy_coef", "kl_coef", "kl_estimator",
    "router_balance_coef",
    "kl_in", "kl_target", "kl_horizon", "train_batch_size", "micro_train_batch_size", "max_epochs",
    "num_episodes", "max_steps", "max_norm", "save_samples", "eval_every", "best_metric", "best_mode",
    "early_stop_patience", "length_factor", "entropy_fraction", "kl_limit", "plugins",
)  # fmt: skip
"""They hold from the first resumed step on, and are told. Prompts, reference model and reward files are compared by content as well."""

UNLESS = {
    "kl_coef": "kl_target",
    "rollout_batch_size": "max_version_lag", "n_samples_per_prompt": "max_version_lag", "generate_max_len": "max_version_lag",
    "environment": "max_version_lag", "max_turns": "max_version_lag", "turn_max_len": "max_version_lag",
    "rewritten_turns": "max_version_lag",
}  # fmt: skip
"""A setting that belongs to the state where another one is set: an adaptive `kl_coef` has moved since; unfinished answers were begun."""
