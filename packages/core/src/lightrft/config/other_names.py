"""The names that settings have in TRL, OpenRLHF, upstream LightRFT and verl, with the name here: for messages and docs/coming-from.md."""

from __future__ import annotations

from collections.abc import Mapping

NO_SETTING = "no setting here"
EVERY_STEP = f"{NO_SETTING}: every step is logged"
CUSTOM_REWARD = "reward", "path/to/file.py:function"
Answer = tuple[str, str]
"""The name here (empty: none), and a note."""

TRL: Mapping[str, Answer] = {
    "beta": ("kl_coef", ""),
    "lr": ("learning_rate", ""),
    "num_generations": ("n_samples_per_prompt", ""),
    "max_completion_length": ("generate_max_len", ""),
    "max_prompt_length": ("prompt_max_len", ""),
    "per_device_train_batch_size": ("micro_train_batch_size", "samples per rank in one pass"),
    "gradient_accumulation_steps": ("train_batch_size", "samples of one optimizer step, over all ranks"),
    "generation_batch_size": ("rollout_batch_size", "prompts, not completions"),
    "num_train_epochs": ("num_episodes", ""),
    "num_iterations": ("max_epochs", ""),
    "epsilon": ("eps_clip", ""),
    "epsilon_high": ("eps_clip_high", ""),
    "loss_type": ("loss_aggregation", "and policy_loss"),
    "scale_rewards": ("advantage_estimator", "dr_grpo divides by no deviation"),
    "importance_sampling_level": ("policy_loss", "gspo for sequences"),
    "reward_funcs": ("reward", ""),
    "mask_truncated_completions": ("overlong_filter", ""),
    "vllm_importance_sampling_correction": ("logprob_gap_action", "correct"),
    "vllm_importance_sampling_cap": ("mismatch_cap", ""),
    "use_vllm": ("engine_type", "vllm"),
    "use_liger_kernel": ("fused_linear_logprob", ""),
    "use_peft": ("lora_rank", "0 trains the weights themselves"),
    "lora_r": ("lora_rank", ""),
    "dataset_name": ("prompt_data", "OWNER/NAME"),
    "dataset_config": ("prompt_data", "OWNER/NAME:SUBSET"),
    "dataset_train_split": ("prompt_data", "OWNER/NAME:SUBSET:SPLIT"),
    "dataset_test_split": ("eval_data", "OWNER/NAME:SUBSET:SPLIT"),
    "save_total_limit": ("keep_checkpoints", ""),
    "load_best_model_at_end": ("keep_best", "checkpoints to keep"),
    "metric_for_best_model": ("best_metric", ""),
    "greater_is_better": ("best_mode", "max or min"),
    "resume_from_checkpoint": ("resume_from", ""),
    "report_to": ("loggers", ""),
    "run_name": ("output_dir", ""),
    "max_grad_norm": ("max_norm", ""),
    "lr_scheduler_type": ("lr_scheduler", ""),
    "warmup_steps": ("lr_warmup_steps", ""),
    "warmup_ratio": ("lr_warmup_steps", "optimizer steps, not a fraction"),
    "save_steps": ("save_every", ""),
    "eval_steps": ("eval_every", ""),
    "logging_steps": ("", EVERY_STEP),
}

OPENRLHF: Mapping[str, Answer] = {
    "pretrain": ("model_name_or_path", ""),
    "actor_learning_rate": ("learning_rate", ""),
    "critic_pretrain": ("critic_model_name_or_path", ""),
    "reward_pretrain": ("reward", "model:FOLDER"),
    "remote_rm_url": ("reward", "http://host:port/path"),
    "init_kl_coef": ("kl_coef", ""),
    "use_kl_loss": ("kl_in", "loss or reward"),
    "entropy_loss_coef": ("entropy_coef", ""),
    "eps_clip_low_high": ("eps_clip_low", "and eps_clip_high"),
    "normalize_reward": ("normalize_rewards", ""),
    "freezing_actor_steps": ("critic_warmup_steps", "rollouts"),
    "enable_ema": ("ema_beta", "0 keeps no average"),
    "l2": ("weight_decay", ""),
    "lr_warmup_ratio": ("lr_warmup_steps", "optimizer steps, not a fraction"),
    "input_template": ("prompt_template", ""),
    "prompt_data_probs": ("prompt_data_weights", "in any unit"),
    "prompt_split": ("prompt_data", "OWNER/NAME:SUBSET:SPLIT"),
    "eval_dataset": ("eval_data", ""),
    "eval_split": ("eval_data", "OWNER/NAME:SUBSET:SPLIT"),
    "eval_n_samples_per_prompt": ("eval_n", ""),
    "dynamic_filtering": ("dynamic_sampling", ""),
    "overlong_buffer_len": ("overlong_buffer", ""),
    "overlong_penalty_factor": ("overlong_penalty", ""),
    "use_dynamic_batch": ("packing_samples", ""),
    "train_max_tokens_per_gpu": ("max_tokens_per_micro_batch", ""),
    "ring_attn_size": ("sp_size", ""),
    "target_modules": ("lora_target_modules", ""),
    "vllm_tensor_parallel_size": ("engine_tp_size", ""),
    "vllm_gpu_memory_utilization": ("engine_mem_util", ""),
    "vllm_enable_sleep": ("enable_engine_sleep", ""),
    "vllm_num_engines": ("engine_tp_size", "engines share the ranks: as many as ranks / engine_tp_size"),
    "save_path": ("output_dir", ""),
    "ckpt_path": ("output_dir", ""),
    "max_ckpt_num": ("keep_checkpoints", ""),
    "load_checkpoint": ("resume_from", "latest"),
    "use_wandb": ("loggers", "console jsonl wandb"),
    "use_tensorboard": ("loggers", "console jsonl tensorboard"),
    "save_steps": ("save_every", ""),
    "eval_steps": ("eval_every", ""),
    "logging_steps": ("", EVERY_STEP),
    "colocate_all_models": ("", f"{NO_SETTING}: trainer and engine always share the ranks"),
}

ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
VERL: Mapping[str, Answer] = {
    "data.train_files": ("prompt_data", ""),
    "data.val_files": ("eval_data", ""),
    "data.train_batch_size": ("rollout_batch_size", ""),
    "data.max_prompt_length": ("prompt_max_len", ""),
    "data.max_response_length": ("generate_max_len", ""),
    "data.prompt_key": ("input_key", ""),
    "actor_rollout_ref.model.path": ("model_name_or_path", ""),
    "actor_rollout_ref.model.enable_gradient_checkpointing": ("gradient_checkpointing", ""),
    "actor_rollout_ref.model.lora_rank": ("lora_rank", ""),
    f"{ACTOR}strategy": ("strategy", ""),
    f"{ACTOR}optim.lr": ("learning_rate", ""),
    f"{ACTOR}ppo_mini_batch_size": ("train_batch_size", "samples: its prompts times n_samples_per_prompt"),
    f"{ACTOR}ppo_micro_batch_size_per_gpu": ("micro_train_batch_size", ""),
    f"{ACTOR}ppo_max_token_len_per_gpu": ("max_tokens_per_micro_batch", ""),
    f"{ACTOR}use_dynamic_bsz": ("packing_samples", ""),
    f"{ACTOR}ulysses_sequence_parallel_size": ("sp_size", ""),
    f"{ACTOR}ppo_epochs": ("max_epochs", ""),
    f"{ACTOR}clip_ratio": ("eps_clip", ""),
    f"{ACTOR}clip_ratio_low": ("eps_clip_low", ""),
    f"{ACTOR}clip_ratio_high": ("eps_clip_high", ""),
    f"{ACTOR}clip_ratio_c": ("dual_clip", ""),
    f"{ACTOR}loss_agg_mode": ("loss_aggregation", ""),
    f"{ACTOR}use_kl_loss": ("kl_in", "loss"),
    f"{ACTOR}kl_loss_coef": ("kl_coef", ""),
    f"{ACTOR}kl_loss_type": ("kl_estimator", ""),
    f"{ACTOR}entropy_coeff": ("entropy_coef", ""),
    f"{ACTOR}grad_clip": ("max_norm", ""),
    f"{ROLLOUT}name": ("engine_type", ""),
    f"{ROLLOUT}n": ("n_samples_per_prompt", ""),
    f"{ROLLOUT}temperature": ("temperature", ""),
    f"{ROLLOUT}top_p": ("top_p", ""),
    f"{ROLLOUT}top_k": ("top_k", "0 is off"),
    f"{ROLLOUT}tensor_model_parallel_size": ("engine_tp_size", ""),
    f"{ROLLOUT}gpu_memory_utilization": ("engine_mem_util", ""),
    "critic.model.path": ("critic_model_name_or_path", ""),
    "critic.optim.lr": ("critic_learning_rate", ""),
    "algorithm.adv_estimator": ("advantage_estimator", ""),
    "algorithm.gamma": ("gamma", ""),
    "algorithm.lam": ("lambd", ""),
    "algorithm.use_kl_in_reward": ("kl_in", "reward"),
    "algorithm.kl_ctrl.kl_coef": ("kl_coef", ""),
    "algorithm.kl_ctrl.target_kl": ("kl_target", ""),
    "algorithm.kl_ctrl.horizon": ("kl_horizon", ""),
    "algorithm.filter_groups.enable": ("dynamic_sampling", ""),
    "custom_reward_function.path": CUSTOM_REWARD,
    "custom_reward_function.name": CUSTOM_REWARD,
    "reward_model.model.path": ("reward", "model:FOLDER"),
    "trainer.total_epochs": ("num_episodes", ""),
    "trainer.total_training_steps": ("max_steps", "rollouts"),
    "trainer.save_freq": ("save_every", ""),
    "trainer.test_freq": ("eval_every", ""),
    "trainer.logger": ("loggers", ""),
    "trainer.default_local_dir": ("output_dir", ""),
    "trainer.resume_mode": ("resume_from", "latest"),
    "trainer.critic_warmup": ("critic_warmup_steps", ""),
    "trainer.max_actor_ckpt_to_keep": ("keep_checkpoints", ""),
}

LIBRARIES: Mapping[str, Mapping[str, Answer]] = {"TRL": TRL, "OpenRLHF and upstream LightRFT": OPENRLHF, "verl": VERL}


def named_here(name: str) -> str:
    """What to write instead of another library's name, for a message; empty for a name that none of them has.

    Example:
        >>> named_here("beta")
        ': TRL has it; the name here is kl_coef'
        >>> named_here("acme")
        ''
    """
    plain = name.replace("-", "_")
    having = [library for library, names in LIBRARIES.items() if plain in names]
    if not having:
        return ""
    here, note = LIBRARIES[having[0]][plain]
    verb = "have" if len(having) > 1 or " and " in having[0] else "has"
    answer = f"the name here is {here}" + (f" ({note})" if note else "") if here else note
    return f": {', '.join(having)} {verb} it; {answer}"
