"""Which prompts do the settings name? A data file as the configuration says to read it."""

from __future__ import annotations

from typing import Any

from lightrft.config.schema import Config
from lightrft.data.prompts import PromptSet, load_prompts


def prompt_set(config: Config, path: str, *, tokenizer: Any, limit: int = 0) -> PromptSet:
    """The prompts of a file, tokenized; `limit` takes the first rows only, 0 all. Raises DataError (see `load_prompts`)."""
    return load_prompts(
        path,
        tokenizer=tokenizer,
        input_key=config.input_key,
        label_key=config.label_key,
        prompt_template=config.prompt_template,
        apply_chat_template=config.apply_chat_template,
        prompt_max_len=config.prompt_max_len,
        limit=limit,
    )
