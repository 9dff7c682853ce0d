"""Settings that this configuration asks for without any effect. Each one is an error, not a surprise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lightrft.config.schema import Config


@dataclass(frozen=True)
class Pointless:
    """Settings that are read only where `read` says so of the field `on`; `remedy` makes them count."""

    fields: tuple[str, ...]
    on: str
    read: tuple[object, ...] | None  # the values of `on` that read them; None: any but zero and empty
    remedy: str
    unless: str = ""  # another setting that reads them, where it is given


POINTLESS = (
    Pointless(("chunk_size",), "fused_linear_logprob", None, "set --fused_linear_logprob"),
    Pointless(("kl_estimator", "kl_in", "kl_target", "kl_limit"), "kl_coef", None, "set kl_coef above 0"),
    Pointless(("kl_horizon",), "kl_target", None, "set kl_target above 0"),
    Pointless(("dynamic_sampling_tries",), "dynamic_sampling", None, "set --dynamic_sampling"),
    Pointless(
        ("max_turns", "turn_max_len", "rewritten_turns", "environment_timeout_s", "environment_concurrency"),
        "environment",
        None,
        "set environment",
    ),
    Pointless(("overlong_penalty",), "overlong_buffer", None, "set overlong_buffer above 0"),
    Pointless(("engine_sleep_level",), "enable_engine_sleep", None, "leave out --disable_engine_sleep"),
    Pointless(("slice_max_len",), "max_version_lag", None, "set max_version_lag above 0"),
    Pointless(("logprob_gap_threshold", "logprob_gap_action"), "logprob_gap_prompts", None, "set logprob_gap_prompts above 0"),
    Pointless(("mismatch_cap",), "logprob_gap_prompts", None, "set logprob_gap_prompts above 0", unless="max_version_lag"),
    Pointless(
        ("mismatch_level", "mismatch_beyond"),
        "logprob_gap_action",
        ("correct",),
        "set logprob_gap_action to correct",
        unless="max_version_lag",
    ),
    Pointless(("mismatch_floor",), "mismatch_beyond", ("mask",), "set mismatch_beyond to mask"),
    Pointless(("scratch_vocab_size",), "scratch_tokenizer", ("bpe",), "set scratch_tokenizer to bpe"),
    Pointless(
        ("scratch_layers", "scratch_hidden", "scratch_heads", "scratch_kv_heads"),
        "scratch_tokenizer",
        ("char", "bpe"),
        "set scratch_tokenizer to char or bpe",
    ),
    Pointless(("system_prompt", "tools_key", "chat_template_kwargs"), "apply_chat_template", None, "set --apply_chat_template"),
    Pointless(("lora_alpha", "lora_target_modules", "lora_sync"), "lora_rank", None, "set lora_rank above 0"),
    Pointless(("trust_remote_code",), "scratch_tokenizer", ("none",), "leave scratch_tokenizer out"),
    Pointless(
        ("sft_batch_size", "sft_learning_rate", "sft_key", "sft_strip", "sft_target_reward"), "sft_steps", None, "set sft_steps above 0"
    ),
    Pointless(("keep_checkpoints", "keep_best", "async_save"), "save_every", None, "set save_every", unless="save_every_minutes"),
    Pointless(("best_metric", "best_mode"), "keep_best", None, "set keep_best or early_stop_patience", unless="early_stop_patience"),
    Pointless(("sft_target_reward", "max_eval_samples", "eval_every", "eval_n"), "eval_data", None, "set eval_data"),
    Pointless(("eval_max_len",), "eval_data", None, "set eval_data"),
    Pointless(("eval_right_at", "eval_temperature", "eval_top_p", "eval_top_k"), "eval_n", None, "set eval_n"),
)


def is_given(config: Config, name: str) -> bool:
    """Whether a setting asks for something: a value equal to its default does not, so that a saved configuration can be run again."""
    return bool(getattr(config, name) != Config.model_fields[name].default)


def ignored_settings(config: Config) -> Iterator[str]:
    """One line for each setting that the rest of the configuration leaves without effect."""
    for rule in POINTLESS:
        found = getattr(config, rule.on)
        if found in rule.read if rule.read is not None else found:
            continue
        if rule.unless and is_given(config, rule.unless):
            continue
        for name in rule.fields:
            if is_given(config, name):
                yield f"{name}={getattr(config, name)!r} has no effect with {rule.on}={found!r}; {rule.remedy}, or leave {name} out"
