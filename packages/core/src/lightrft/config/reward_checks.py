"""Whether these rewards can be had: what the settings say of them, before any is imported or asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lightrft.config.ignored import is_given
from lightrft.config.model_folder import model_path_problem
from lightrft.config.reward_names import RESERVED, address_problem, called, model_folder, named_alike, reward_function, server_address
from lightrft.config.schema import Config
from lightrft.errors import PluginError
from lightrft.plugins.registry import Registry

REMOTE = ("reward_timeout_s", "reward_retries", "reward_concurrency", "reward_batch_size", "reward_backoff_s", "reward_auth_env")
"""Settings of reward servers alone."""

OF_MODELS = ("reward_shard_size", "reward_max_len")

NEED_ANSWERS = ("exact_match", "math", "code")
"""Rewards of LightRFT that fail on a sample without a label."""


def check_rewards(config: Config, *, registry: Registry) -> Iterator[str]:
    """One line for each problem of the reward settings."""
    if not config.reward:
        yield "reward is empty; name at least one (`lightrft plugins` lists them)"
    if config.reward_weights and len(config.reward_weights) != len(config.reward):
        rewards = f"{len(config.reward)} rewards ({', '.join(config.reward)})"
        yield f"reward_weights has {len(config.reward_weights)} numbers for {rewards}; give one each"
    for reward in config.reward if not config.label_key else []:
        if reward in NEED_ANSWERS:
            yield f"reward={reward!r} needs an answer for each row, and label_key is empty; set it to the column of the answers"
    yield from _permission(config, registry)
    yield from named_alike(config.reward)
    for reward in config.reward:
        if called(reward) in RESERVED:
            yield f"reward={reward!r} is called {called(reward)!r}, which other metrics are called; give it a name of its own: name=..."
    addresses = [address for reward in config.reward if (address := server_address(reward)) is not None]
    for reward in config.reward:
        yield from _one(reward, registry, trust_remote_code=config.trust_remote_code)
    models = [reward for reward in config.reward if model_folder(reward)]
    if models and config.sft_target_reward:
        yield f"sft_target_reward={config.sft_target_reward} is measured before reward models are there ({models[0]}); set it to 0"
    if not models:
        if config.offload_frozen and not config.kl_coef:
            held = "no reference model (kl_coef=0) and no reward model (model:FOLDER) is held"
            yield f"offload_frozen=True has no effect: {held}; leave it out"
        for name in OF_MODELS:
            if is_given(config, name):
                yield f"{name}={getattr(config, name)!r} has no effect without a reward model (reward model:FOLDER); leave it out"
    if not addresses:
        for name in REMOTE:
            if is_given(config, name):
                yield f"{name}={getattr(config, name)!r} has no effect without a reward server (reward http://host:port/path); leave it out"
    elif config.reward_auth_env and not os.environ.get(config.reward_auth_env):
        yield f"reward_auth_env={config.reward_auth_env!r}: no such environment variable, or an empty one; export it on every machine"


def _permission(config: Config, registry: Registry) -> Iterator[str]:
    """`allow_code_execution`, and what runs a model's programs: some rewards and environments, and one's own, which may ask one of them."""
    asked = {"reward": config.reward, "environment": [config.environment] if config.environment else []}
    running = {kind: [e.name for e in registry.entries(kind) if getattr(e.spec, "runs_code", False)] for kind in asked}
    given = [(kind, name) for kind, names in asked.items() for name in names]
    for kind, name in given:
        if name in running[kind] and not config.allow_code_execution:
            yield f"{kind}={name!r} runs programs that the model wrote; set --allow_code_execution, in a container that may be lost"
    if any(name in running[kind] or ":" in name for kind, name in given):
        return
    of_all = ", ".join(f"{kind} {name}" for kind, names in running.items() for name in names)
    for setting in ("allow_code_execution", "code_sandbox"):
        if is_given(config, setting):
            yield f"{setting}={getattr(config, setting)!r} has no effect without what runs programs of the model ({of_all}); leave it out"


def _one(reward: str, registry: Registry, *, trust_remote_code: bool) -> Iterator[str]:
    model = model_folder(reward)
    if model is not None:
        if problem := model_path_problem("reward", model.path, trust_remote_code=trust_remote_code, tokenizer=True, written=reward):
            yield problem
        return
    address = server_address(reward)
    if address is not None:
        if problem := address_problem(reward, address):
            yield problem
        return
    if ":" not in reward:
        try:
            registry.entry("reward", reward)
        except PluginError as error:
            yield str(error)
        return
    found = reward_function(reward)
    assert found is not None, reward
    path, _, function = found.place.rpartition(":")
    if path.endswith(".py") and not Path(path).is_file():
        yield f"reward={reward!r}: no such file {path!r}; the form is path/to/file.py:function"
    elif not (path and function):
        yield f"reward={reward!r} is not of the form module:function or path/to/file.py:function"
