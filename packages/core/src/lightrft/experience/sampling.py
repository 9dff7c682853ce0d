"""The sampling of rollouts and of evaluations, as the settings say; nothing comes from the model's generation_config.json."""

from __future__ import annotations

from dataclasses import replace

from lightrft.config.schema import Config
from lightrft.types import SamplingParams


def sampling_params(config: Config) -> SamplingParams:
    """How the completions of a rollout are drawn."""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        n=config.n_samples_per_prompt,
        max_new_tokens=config.generate_max_len,
        min_new_tokens=config.min_new_tokens,
        stop=tuple(config.stop),
        stop_token_ids=tuple(config.stop_token_ids),
        ignore_eos=config.ignore_eos,
    )


def greedy_params(config: Config) -> SamplingParams:
    """The one likeliest completion of each prompt, which ends as those of a rollout do."""
    return replace(sampling_params(config), temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, n=1)


def eval_greedy_params(config: Config) -> SamplingParams:
    """The greedy completion of an evaluation prompt."""
    return replace(greedy_params(config), max_new_tokens=config.eval_max_len or config.generate_max_len)


def eval_sample_params(config: Config) -> SamplingParams:
    """The `eval_n` samples of an evaluation prompt, the same at every evaluation of the same weights."""
    return replace(
        sampling_params(config),
        n=config.eval_n,
        seed=config.seed,
        temperature=config.eval_temperature or config.temperature,
        top_p=config.eval_top_p or config.top_p,
        top_k=config.top_k if config.eval_top_k < 0 else config.eval_top_k,
        max_new_tokens=config.eval_max_len or config.generate_max_len,
    )
