"""What has to be known of a model folder to check requests and to end completions? Its configuration files say; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, GenerationConfig


@dataclass(frozen=True)
class ModelFacts:
    """`vocab_size` counts the rows of the embedding; `eos_token_ids` end a completion (generation_config.json wins over config.json)."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]


def model_facts(model_path: str, *, trust_remote_code: bool) -> ModelFacts:
    """Reads config.json and, where there is one, generation_config.json."""
    config: Any = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    try:
        found = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the folder has none
        found = None
    return ModelFacts(vocab_size=text.vocab_size, eos_token_ids=as_ids(found if found is not None else text.eos_token_id))


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Configurations say None, one id, or a list."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
