"""The function that a reward's name means: a plugin, `module:function`, `path/to/file.py:function`, one of another library, a server."""

from __future__ import annotations

import importlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from lightrft.config.reward_names import (
    ModelFolder,
    address_problem,
    called,
    model_folder,
    named_alike,
    reward_function,
    server_address,
)
from lightrft.config.schema import Config
from lightrft.errors import RewardError, nearest
from lightrft.plugins.registry import Registry
from lightrft.rewards.adapters import adapted, misfit, written_for
from lightrft.rewards.calling import put_back
from lightrft.rewards.import_file import import_failed, import_file
from lightrft.rewards.remote import RemoteReward, RemoteSettings
from lightrft.types import Sample
from lightrft.utils.sandbox import lacking

RewardFunction = Callable[[Sequence[Sample]], Sequence[float | None] | Awaitable[Sequence[float | None]]]
"""One number for each sample, in order; None where it does not apply to a sample. May be `async`, and may run in any thread; sees only the
samples of its own rank.
"""


ModelLoader = Callable[[ModelFolder], RewardFunction]
"""Loads a reward model; collective."""


@dataclass(frozen=True, kw_only=True)
class NamedReward:
    """A reward function under the name that metrics call it by, and its weight in the sum.

    `may_run_code`: it may run programs that the model wrote (`allow_code_execution`).
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    may_run_code: bool = False


def rewards_of(config: Config, *, registry: Registry, models: ModelLoader | None = None) -> list[NamedReward]:
    """The rewards of the settings; raises as `load_rewards`."""
    remote = RemoteSettings(
        timeout_s=config.reward_timeout_s,
        retries=config.reward_retries,
        concurrency=config.reward_concurrency,
        batch_size=config.reward_batch_size,
        backoff_s=config.reward_backoff_s,
        auth_env=config.reward_auth_env,
    )
    found = load_rewards(
        config.reward,
        weights=config.reward_weights,
        registry=registry,
        remote=remote,
        models=models,
        input_key=config.input_key,
        may_run_code=config.allow_code_execution,
    )
    return [
        _in_sandbox(reward, config.code_sandbox) if asked == "code" else reward  # a function of one's own may have that name, too
        for asked, reward in zip(config.reward, found, strict=True)
    ]


def _in_sandbox(reward: NamedReward, asked: str) -> NamedReward:
    """The reward `code`, where this system gives the sandbox that is asked for. Raises RewardError."""
    if asked == "weak":
        return replace(reward, function=partial(cast(Callable[..., Sequence[float]], reward.function), weak=True))
    if problem := lacking():
        raise RewardError(problem)
    return reward


def load_rewards(
    names: Sequence[str],
    *,
    weights: Sequence[float],
    registry: Registry,
    remote: RemoteSettings | None = None,
    models: ModelLoader | None = None,
    input_key: str = "prompt",
    may_run_code: bool = False,
) -> list[NamedReward]:
    """Finds every named reward. `weights` is empty (all 1) or has one number for each name. No server is asked yet.
    `models` loads reward models; without it, they are refused. `input_key` is the column of prompts (for functions of other libraries).

    Raises:
        RewardError: no such module, file or attribute (nearest), not callable, import fails (chained), a name twice, wrong weights; or a
            function of another library without its adapter.
        PluginError: a name without a colon that no usable plugin has.
    """
    for problem in named_alike(names):
        raise RewardError(problem)
    if weights and len(weights) != len(names):
        raise RewardError(f"reward_weights has {len(weights)} numbers for {len(names)} rewards ({', '.join(names)}); give one each")
    for weight in weights:
        if not math.isfinite(weight):
            raise RewardError(f"reward_weights holds {weight!r}; every weight must be a finite number")
    chosen = weights or [1.0] * len(names)
    found = [_find(name, registry, remote or RemoteSettings(), models, input_key) for name in names]
    return [
        NamedReward(name=n, function=f, weight=float(w), may_run_code=may_run_code)
        for n, f, w in zip(map(called, names), found, chosen, strict=True)
    ]


def _find(name: str, registry: Registry, remote: RemoteSettings, models: ModelLoader | None, input_key: str) -> RewardFunction:
    folder = model_folder(name)
    if folder is not None:
        if models is None:
            raise RewardError(f"reward {name!r} is a model, which needs a strategy; functions and servers only can be asked here")
        return models(folder)
    address = server_address(name)
    if address is not None:
        if problem := address_problem(name, address):
            raise RewardError(problem)
        return RemoteReward(name=address.name, url=address.url, settings=remote)
    own = reward_function(name)
    if own is None:
        plugin: RewardFunction = registry.load("reward", name)
        return plugin
    function = _function(name, own.place)
    if own.adapter:
        try:
            return adapted(function, adapter=own.adapter, input_key=input_key)
        except RewardError as error:
            raise RewardError(f"reward {name!r}: {error}") from None
    if adapter := written_for(function):
        raise RewardError(f"reward {name!r} has the parameters of a {adapter} reward function; give it as {adapter}:{own.place}")
    if problem := misfit(function):
        raise RewardError(f"reward {name!r} {problem}")
    return function


def _function(name: str, place: str) -> RewardFunction:
    """The function at `module:function` or `path/to/file.py:function`."""
    module_name, _, attribute = place.rpartition(":")
    if not module_name or not attribute:
        raise RewardError(f"reward {name!r} is not of the form 'module:function' or 'path/to/file.py:function'")
    is_file = module_name.endswith(".py")
    module = import_file(Path(module_name).expanduser(), name=name) if is_file else _import_module(name, module_name)
    found = _attribute(name, module, attribute)
    if not callable(found):
        raise RewardError(f"reward {name!r} is {found!r:.60}, a {type(found).__name__}, not a function (samples) -> list of numbers")
    function: RewardFunction = found
    return function


def _attribute(name: str, module: ModuleType, attribute: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        possible = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        hint = nearest(attribute, possible) or f" (functions there: {', '.join(possible) or 'none'})"
        raise RewardError(f"reward {name!r}: {module.__file__ or module.__name__} has no {attribute!r}{hint}") from None


def _import_module(name: str, place: str) -> ModuleType:
    try:
        with put_back():
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # Only the asked module itself (or a parent) is "not found"; a module that it imports is an error inside it.
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise RewardError(
                f"reward {name!r}: no module {error.name!r} on the import path; install it, set PYTHONPATH, or give path/file.py:function"
            ) from error
        raise import_failed(name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise import_failed(name, error) from error
