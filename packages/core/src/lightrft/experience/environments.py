"""The environment of the settings: its class, and what writes the turns that follow the policy's."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightrft.config.schema import Config
from lightrft.data.chat import ChatSettings
from lightrft.data.turns import TurnWriter
from lightrft.errors import CodePermissionError, EpisodeError, RewardError, SandboxError, nearest
from lightrft.models.load import load_tokenizer
from lightrft.plugins.registry import Registry
from lightrft.rewards.import_file import import_failed, import_file, place, said
from lightrft.rollout.environment import Environment
from lightrft.utils.sandbox import lacking


def load_environment(name: str, *, registry: Registry) -> type[Environment]:
    """The class of the environment of each episode: a plugin's class by its name, `module:Class` or `path/to/file.py:Class`. Local.

    Raises:
        EpisodeError: no such module, file or class (nearest), an import that fails (chained), or no subclass of `Environment`.
        PluginError: a name without a colon that no usable plugin has.
    """
    if ":" not in name:
        plugin: type[Environment] = registry.load("environment", name)
        return plugin
    where, _, attribute = name.rpartition(":")
    module = _module(name, where)
    found = getattr(module, attribute, None)
    if found is None:
        possible = [n for n, value in vars(module).items() if _is_environment(value)]
        hint = nearest(attribute, possible) or f" (environments there: {', '.join(possible) or 'none'})"
        raise EpisodeError(f"environment {name!r}: {where} has no {attribute!r}{hint}")
    if not _is_environment(found):
        raise EpisodeError(f"environment {name!r} is {found!r:.60}, no subclass of lightrft.rollout.environment.Environment")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise EpisodeError(f"environment {name!r} does not define {', '.join(missing)}, which Environment asks for")
    if asked := _asked_for(found):
        raise EpisodeError(f"environment {name!r} is made with {asked}; each episode makes one without arguments")
    environment: type[Environment] = found
    return environment


def chat_settings(config: Config, *, registry: Registry) -> ChatSettings:
    """How conversations are written: by the settings, with the tools of the environment. Local.

    Raises:
        EpisodeError, PluginError: as `load_environment`; tools that have no JSON schema, or that settings leave no place for.
    """
    return ChatSettings(
        system_prompt=config.system_prompt, tools_key=config.tools_key, kwargs=config.chat_template_kwargs,
        tools=_tools(config, registry=registry) if config.environment else (),
    )  # fmt: skip


def _tools(config: Config, *, registry: Registry) -> tuple[Mapping[str, Any], ...]:
    name = config.environment
    environment = load_environment(name, registry=registry)
    try:
        tools = tuple(environment.tools())
    except (Exception, SystemExit) as error:
        raise EpisodeError(f"the tools of environment {name!r}: {said(error)}{place(error)}") from error
    if tools and not config.apply_chat_template:
        raise EpisodeError(f"environment {name!r} has tools, which a chat template shows to the model; set --apply_chat_template")
    if tools and config.tools_key:
        raise EpisodeError(f"environment {name!r} has tools, and tools_key={config.tools_key!r} gives others; leave tools_key out")
    return tools


def turn_writer(config: Config, tokenizer: Any, *, registry: Registry) -> TurnWriter:
    """What writes the turns of episodes. Raises as `chat_settings` and `TurnWriter`."""
    chat = chat_settings(config, registry=registry)
    return TurnWriter(tokenizer, chat=chat if config.apply_chat_template else None, split=config.rewritten_turns == "split")


def check_environment(config: Config, *, registry: Registry) -> None:
    """Loads the environment, and looks whether its turns can be written, before a model loads. Local.

    A tokenizer that is made from the data is not there yet: its turns are looked at later.

    Raises:
        EpisodeError, PluginError, DataError: as `chat_settings` and `TurnWriter`.
        CodePermissionError, SandboxError: it runs programs of the model, which the settings or the system do not allow.
    """
    _may_run_code(config, load_environment(config.environment, registry=registry))
    chat_settings(config, registry=registry)
    if config.scratch_tokenizer == "none":
        tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
        turn_writer(config, tokenizer, registry=registry)


def _may_run_code(config: Config, environment: type[Environment]) -> None:
    if not environment.runs_code:
        return
    if not config.allow_code_execution:
        raise CodePermissionError(
            f"environment={config.environment!r} runs programs that the model wrote; set --allow_code_execution, in a container that may "
            "be lost"
        )
    if config.code_sandbox == "full" and (problem := lacking()):
        raise SandboxError(problem)


def _asked_for(environment: type[Environment]) -> str:
    """The arguments that it cannot be made without."""
    given = inspect.signature(environment).parameters.values()
    needed = [one for one in given if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return ", ".join(one.name for one in needed)


def _is_environment(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Environment) and value is not Environment


def _module(name: str, where: str) -> Any:
    try:
        if where.endswith(".py"):
            return import_file(Path(where).expanduser(), name=name, what="environment")
        return importlib.import_module(where)
    except RewardError as error:
        raise EpisodeError(str(error)) from error
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            raise EpisodeError(
                f"environment {name!r}: no module {error.name!r} on the import path; install it, set PYTHONPATH, or give path/file.py:Class"
            ) from error
        raise EpisodeError(str(import_failed(name, error, what="environment"))) from error
    except (Exception, SystemExit) as error:
        raise EpisodeError(str(import_failed(name, error, what="environment"))) from error
