"""Every check of a job that needs no model, in one place. The command line makes it before ranks start; `lightrft.train`, a script's
`open_run`, Ray's workers and a notebook make it before a model loads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Literal

from lightrft.config.checks import check, check_bisect, check_eval, check_invariance, check_showing
from lightrft.config.data_sources import is_there, prompt_sources
from lightrft.config.eval_files import eval_files
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, ModelError, Problem, RunFolderError, UserError
from lightrft.plugins.registry import Registry

Mode = Literal["train", "eval", "bisect", "invariance", "prompts"]


def preflight_problems(
    config: Config, *, mode: Mode, registry: Registry, world_size: int, typed: Collection[str] = (), rewards: bool = True
) -> list[str]:
    """One line for each problem of the settings, the data and the checkpoint to go on from. `typed`, `rewards`: see `check`. Local."""
    checks: dict[Mode, Callable[[], None]] = {
        "train": lambda: check(config, registry=registry, world_size=world_size, typed=typed, rewards=rewards),
        "eval": lambda: check_eval(config, registry=registry, world_size=world_size),
        "bisect": lambda: check_bisect(config, registry=registry, world_size=world_size),
        "invariance": lambda: check_invariance(config, registry=registry, world_size=world_size),
        "prompts": lambda: check_showing(config),
    }
    problems = [*problems_of(checks[mode]), *_data(config, mode), *_resume(config, mode), *_locks(config, mode)]
    return problems or _models(config, mode, registry)


def raise_all(problems: list[str]) -> None:
    """Raises ConfigError where there is any."""
    if problems:
        raise ConfigError(problems)


def problems_of(look: Callable[[], object]) -> list[str]:
    """The lines of the UserError that `look` raises, if it does, each with the section of that error."""
    try:
        look()
    except ConfigError as error:
        return error.problems
    except UserError as error:
        return Problem.each([str(error)], of=type(error))
    return []


def _data(config: Config, mode: Mode) -> list[str]:
    """Looks into the data files: every row must parse, have the columns, and name rewards that are there."""
    from lightrft.trainer.data_checks import check_data, check_file

    imitated = config.sft_key or config.label_key if config.sft_steps else ""
    needed: list[tuple[str, list[str]]] = []
    if mode != "eval" and not problems_of(lambda: prompt_sources(config.prompt_data)):
        columns = [config.input_key, *([imitated] if imitated else [])]
        needed += [(path, columns) for path in prompt_sources(config.prompt_data).values()]
    if mode not in ("bisect", "invariance", "prompts") and not problems_of(lambda: eval_files(config.eval_data)):
        needed += [(path, [config.input_key]) for path in eval_files(config.eval_data).values()]
    there = [(path, required) for path, required in needed if is_there(path)]
    found = [line for path, required in there for line in problems_of(partial(check_file, config, path, required=required))]
    problems = list(dict.fromkeys(found))  # a dataset of the hub may be asked for twice, in vain
    if problems or len(there) < len(needed) or not config.reward_key or mode not in ("train", "eval"):
        return problems
    return problems_of(lambda: check_data(config, training=mode == "train"))


def _models(config: Config, mode: Mode, registry: Registry) -> list[str]:
    """Looks into the model folders, which takes transformers, and whether the embedding has a row for each token of the prompts."""
    from lightrft.trainer.model_folders import check_tokens, folder_problems

    if problems := folder_problems(config, dequantises=mode in ("train", "prompts")):
        return Problem.each(problems, of=ModelError)
    files = [config.prompt_data] if mode != "eval" else []
    files += eval_files(config.eval_data).values() if mode in ("train", "eval") else []
    return problems_of(lambda: check_tokens(config, [path for path in files if path], registry=registry))


def _locks(config: Config, mode: Mode) -> list[str]:
    """Folders in which another process runs."""
    from lightrft.run.lock import in_use
    from lightrft.run.run_folder import folders_of

    folders = [folder for folder in folders_of(config) if "\0" not in str(folder)] if mode == "train" else []
    used = [line for folder in folders if (line := in_use(folder))]
    return Problem.each(used, of=RunFolderError)


def _resume(config: Config, mode: Mode) -> list[str]:
    from lightrft.trainer.resume import check_resume

    return problems_of(lambda: check_resume(config)) if config.resume_from and mode == "train" else []
