"""The model folders that a job names, looked at before one is loaded: actor, critic and reward models, and the tokens of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from lightrft.config.reward_names import model_folder
from lightrft.config.schema import Config
from lightrft.engine.stop_tokens import embedding_rows
from lightrft.errors import ModelError
from lightrft.models.folder_check import empty_model, folder_problem
from lightrft.models.freeze import freeze
from lightrft.models.load import load_tokenizer
from lightrft.models.lora import add_lora, targets_of
from lightrft.models.router_balance import routers_of
from lightrft.models.scratch import char_tokenizer, scratch_model
from lightrft.plugins.registry import Registry
from lightrft.trainer.prompts import prompt_set


def folder_problems(config: Config, *, dequantises: bool) -> list[str]:
    """One line for each folder that is no plain checkpoint of the architecture that the job asks it to be; the actor's may be one that
    the job `dequantises`. Local.
    """
    return [problem for problem in _each(config, dequantises=dequantises) if problem]


def check_tokens(config: Config, files: Sequence[str], *, registry: Registry) -> None:
    """Makes the prompts of the files where the tokenizer knows more tokens than the embedding has rows, before ranks start. Local.

    Raises:
        DataError: a prompt holds one of those tokens (its row).
        DataError, EpisodeError, PluginError: one cannot be made (see `prompt_set`).
    """
    path = config.model_name_or_path
    if config.scratch_tokenizer != "none" or not Path(path).is_dir():
        return
    rows = embedding_rows(path)
    tokenizer = load_tokenizer(path, trust_remote_code=config.trust_remote_code)
    if rows is not None and len(tokenizer) > rows:
        for file in files:
            prompt_set(config, file, tokenizer=tokenizer, registry=registry)


def _each(config: Config, *, dequantises: bool) -> Iterator[str]:
    trust = config.trust_remote_code
    if config.scratch_tokenizer == "none":
        path = config.model_name_or_path
        problem = folder_problem("model_name_or_path", path, trust_remote_code=trust, tokenizer=True, dequantises=dequantises)
        yield problem or _trained(config)
    else:
        yield _trained(config)
    if config.critic_model_name_or_path:
        yield folder_problem("critic_model_name_or_path", config.critic_model_name_or_path, trust_remote_code=trust)
    classifier = AutoModelForSequenceClassification
    for reward in config.reward:
        if model := model_folder(reward):
            yield folder_problem("reward", model.path, auto_class=classifier, trust_remote_code=trust, tokenizer=True, written=reward)


def _trained(config: Config) -> str:
    """Why the model cannot have the adapters that are asked for, or not be frozen as is asked for, or has no experts to balance."""
    scratch = config.scratch_tokenizer != "none"
    asked = config.lora_rank or config.freeze or config.router_balance_coef
    if not asked or not (scratch or Path(config.model_name_or_path).expanduser().is_dir()):
        return ""
    try:
        model = _scratch(config) if scratch else empty_model(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
        if config.router_balance_coef:
            routers_of(model)
        if config.lora_rank:
            targets_of(model, config.lora_target_modules)
        if config.freeze:
            if config.lora_rank:
                model = add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, target_modules=config.lora_target_modules, seed=0)
            freeze(model, config.freeze)
    except ModelError as error:
        return str(error)
    return ""


def _scratch(config: Config) -> Any:
    """The model to be made, on the meta device, with another vocabulary: no name depends on it."""
    sizes = {"layers": config.scratch_layers, "hidden": config.scratch_hidden, "heads": config.scratch_heads}
    with torch.device("meta"):
        return scratch_model(char_tokenizer(["0"]), **sizes, kv_heads=config.scratch_kv_heads, seed=0)
