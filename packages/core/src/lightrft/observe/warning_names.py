"""The names of all warnings: what `warnings.jsonl` calls them, and the sections of docs/troubleshooting.md."""

from __future__ import annotations

from typing import Literal, get_args

WarningName = Literal[
    "all_left_out",
    "all_truncated",
    "assistant_turn",
    "constant_reward",
    "critic_constant",
    "critic_useless",
    "dynamic_sampling_short",
    "end_of_turn_runs_on",
    "entropy_collapse",
    "env_close_error",
    "env_error",
    "env_no_room",
    "evaluation_leak",
    "first_ratio",
    "groups_of_one",
    "images_not_read",
    "kl_blow_up",
    "label_in_prompt",
    "learning_rate",
    "length_ceiling",
    "length_collapse",
    "length_explosion",
    "logprob_gap",
    "no_gradient",
    "prompt_only_reward",
    "reward_model_reads_text",
    "reward_model_template",
    "sampling",
    "special_tokens_in_prompts",
    "special_tokens_unseen",
    "steps_skipped",
    "stop_tokens",
    "tools_not_used",
    "turns_left_out",
    "unrewarded",
    "weights_unmoved",
    "zero_variance",
]
Finding = tuple[WarningName, str]
"""The name of a fault and a sentence about it."""


def printed(name: str, text: str) -> str:
    """A warning as the console shows it: with the section of the documentation, where it is one of ours."""
    where = f" (docs: troubleshooting#{name})" if name in get_args(WarningName) else ""
    return f"WARNING: {text}{where}"
