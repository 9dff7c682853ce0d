"""The model folders that a job names, looked at before one is loaded: actor, critic and reward models, and the tokens of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification

from lightrft.config.reward_names import model_folder
from lightrft.config.schema import Config
from lightrft.models.folder_check import folder_problem
from lightrft.models.load import load_tokenizer
from lightrft.trainer.prompts import prompt_set


def folder_problems(config: Config) -> list[str]:
    """One line for each folder that is no plain checkpoint of the architecture that the job asks it to be. Local."""
    return [problem for problem in _each(config) if problem]


def tokens_without_embedding(config: Config, files: Sequence[str]) -> list[str]:
    """A line for each data file whose prompts hold a token beyond the model's embedding, with the first such row. Local.

    Looked for only where the tokenizer knows more tokens than the embedding has rows. Raises DataError as reading the prompts does.
    """
    path = config.model_name_or_path
    if config.scratch_tokenizer != "none" or not Path(path).expanduser().is_dir():
        return []
    found: Any = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    rows = found.get_text_config().vocab_size
    tokenizer = load_tokenizer(path, trust_remote_code=config.trust_remote_code)
    if len(tokenizer) <= rows:
        return []
    return [line for file in files for line in _beyond(config, file, tokenizer=tokenizer, rows=rows)]


def _each(config: Config) -> Iterator[str]:
    trust = config.trust_remote_code
    if config.scratch_tokenizer == "none":
        yield folder_problem("model_name_or_path", config.model_name_or_path, trust_remote_code=trust, tokenizer=True)
    if config.critic_model_name_or_path:
        yield folder_problem("critic_model_name_or_path", config.critic_model_name_or_path, trust_remote_code=trust)
    classifier = AutoModelForSequenceClassification
    for reward in config.reward:
        if model := model_folder(reward):
            yield folder_problem("reward", model.path, auto_class=classifier, trust_remote_code=trust, tokenizer=True, written=reward)


def _beyond(config: Config, file: str, *, tokenizer: Any, rows: int) -> Iterator[str]:
    for prompt in prompt_set(config, file, tokenizer=tokenizer).prompts:
        if (last := max(prompt.token_ids)) >= rows:
            yield (
                f"{file}, row {prompt.index + 1}: the prompt holds {tokenizer.convert_ids_to_tokens(last)!r}, token {last} of the "
                f"tokenizer, and the model's embedding has {rows} rows; take the token out of the data, or resize the embedding"
            )
            return
