"""What has to be known of a model folder to check requests and to end completions. Its small files say; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from lightrft.engine.stop_tokens import stop_tokens


@dataclass(frozen=True)
class ModelFacts:
    """`vocab_size` counts the rows of the embedding; any of `eos_token_ids` ends a completion: the union of all sources, see
    `engine.stop_tokens`.
    """

    vocab_size: int
    eos_token_ids: tuple[int, ...]


def model_facts(model_path: str, *, trust_remote_code: bool) -> ModelFacts:
    """Reads config.json, the tokenizer and generation_config.json, where there are such. Raises ModelError (see `stop_tokens`)."""
    config: Any = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    vocab_size = config.get_text_config().vocab_size
    return ModelFacts(vocab_size, stop_tokens(model_path, trust_remote_code=trust_remote_code).within(vocab_size).ids)
