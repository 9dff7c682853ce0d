"""A data file as the configuration says to read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightrft.config.eval_files import eval_files
from lightrft.config.schema import Config
from lightrft.data.chat import ChatSettings
from lightrft.data.prompts import PromptSet, load_prompts
from lightrft.engine.stop_tokens import embedding_rows, folder_stop_tokens
from lightrft.models.load import load_tokenizer
from lightrft.observe.warning_names import Finding


def prompt_set(config: Config, path: str, *, tokenizer: Any, limit: int = 0) -> PromptSet:
    """The prompts of a file, tokenized; `limit` takes the first rows only, 0 all. Raises DataError (see `load_prompts`)."""
    made_here = config.scratch_tokenizer != "none"
    found = load_prompts(
        path,
        tokenizer=tokenizer,
        input_key=config.input_key,
        label_key=config.label_key,
        prompt_template=config.prompt_template,
        apply_chat_template=config.apply_chat_template,
        prompt_max_len=config.prompt_max_len,
        limit=limit,
        chat=ChatSettings(system_prompt=config.system_prompt, tools_key=config.tools_key, kwargs=config.chat_template_kwargs),
        special_tokens_in_prompts=config.special_tokens_in_prompts,
        vocab_size=None if made_here else embedding_rows(config.model_name_or_path),
    )
    return replace(found, findings=(*found.findings, *([] if made_here else _runs_on(config, found, tokenizer=tokenizer))))


def check_prompts(config: Config, *, training: bool) -> None:
    """Makes every prompt as the model would read it, before a model loads: templates, tokens, lengths. Local.

    A model that is made from the data is not there yet, nor is its tokenizer: nothing is looked at then.

    Raises:
        DataError: see `load_prompts`.
        ModelError: the tokenizer cannot be loaded.
    """
    if config.scratch_tokenizer != "none":
        return
    tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    if training and config.prompt_data:
        prompt_set(config, config.prompt_data, tokenizer=tokenizer)
    for path in eval_files(config.eval_data).values():
        prompt_set(config, path, tokenizer=tokenizer, limit=config.max_eval_samples)


def target_end(config: Config, found: PromptSet, *, tokenizer: Any) -> int:
    """The token that ends a text to imitate: the one with which the chat template ends a turn, where completions end at it, else the
    tokenizer's.
    """
    own = int(tokenizer.eos_token_id)
    if found.end_of_turn is None or config.scratch_tokenizer != "none":
        return own
    stops = folder_stop_tokens(config.model_name_or_path, tokenizer=tokenizer)
    return found.end_of_turn[0] if found.end_of_turn[0] in (*stops.ids, *config.stop_token_ids) else own


def _runs_on(config: Config, found: PromptSet, *, tokenizer: Any) -> list[Finding]:
    """A chat template that ends a turn with a token at which no completion ends: a base model's folder with a template of its own."""
    if found.end_of_turn is None:
        return []
    token, text = found.end_of_turn
    stops = folder_stop_tokens(config.model_name_or_path, tokenizer=tokenizer)
    asked = stops.with_setting(config.stop_token_ids, ignore_eos=config.ignore_eos)
    if token in asked.ids or text in config.stop:
        return []
    sentence = (
        f"the chat template ends a turn with {text!r}, which is no stop token (stop tokens: {asked.described()}): completions that end "
        f"as the template writes them run on to their limit; set --stop_token_ids {token}"
    )
    return [("end_of_turn_runs_on", sentence)]
