"""Checks of the files and folders that settings name: data, the model, the run folder. Looks at them, and loads no model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lightrft.config.data_sources import POSSIBLE, eval_data_problems, prompt_data_problems
from lightrft.config.eval_files import eval_files
from lightrft.config.model_folder import model_path_problem
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, ModelError, Problem, RunFolderError


def file_problems(config: Config) -> Iterator[str]:
    """All that a training run reads and writes."""
    yield from prompt_data_problems(config)
    yield from evaluation_problems(config)
    if config.eval_out:
        yield f"eval_out={config.eval_out!r} has no effect in training, which writes eval_samples-STEP.jsonl; leave eval_out out"
    if not config.prompt_data:
        yield f"prompt_data is not set; {POSSIBLE}"
    yield from model_folder_problems(config, dequantises=True)
    yield from Problem.each(_folders_of_run(config), of=RunFolderError)


def evaluation_problems(config: Config) -> Iterator[str]:
    """The files of evaluation data, and what is asked of their samples."""
    try:
        files = eval_files(config.eval_data)
    except ConfigError as error:
        yield from error.problems
        return
    for path in files.values():
        yield from eval_data_problems(path)
    for k in config.eval_k:
        if k > config.eval_n:
            yield f"eval_k={k} is larger than eval_n={config.eval_n}: pass@{k} needs {k} samples of each prompt; set eval_n to {k} or more"


def model_folder_problems(config: Config, *, dequantises: bool = False) -> Iterator[str]:
    """The model to load, or that one is made; with `dequantises`, weights of fewer bits are read as well."""
    path = config.model_name_or_path
    if config.scratch_tokenizer != "none":
        if path:
            yield f"model_name_or_path={path!r} and scratch_tokenizer={config.scratch_tokenizer!r} exclude each other; leave one out"
        return
    if not path:
        yield "model_name_or_path is not set; give a HF model folder or a hub name"
        return
    trust = config.trust_remote_code
    if problem := model_path_problem("model_name_or_path", path, trust_remote_code=trust, tokenizer=True, dequantises=dequantises):
        yield from Problem.each([problem], of=ModelError)


def _folders_of_run(config: Config) -> Iterator[str]:
    yield from _writable("output_dir", config.output_dir)
    goes_on = config.resume_from == "latest" or _inside(config.resume_from, config.output_dir)
    if _holds_run(config.output_dir) and not config.overwrite_output_dir and not goes_on:
        remedies = "choose another folder, set --overwrite_output_dir, or --resume_from latest"
        yield f"output_dir={config.output_dir!r} holds another run; {remedies}"
    if config.log_dir:
        yield from _writable("log_dir", config.log_dir)


def _holds_run(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, "config.yaml"))


def _inside(path: str, folder: str) -> bool:
    return bool(path) and "\0" not in path + folder and Path(folder).resolve() in Path(path).resolve().parents


def _writable(name: str, value: str) -> Iterator[str]:
    if "\0" in value:
        yield f"{name}={value!r} holds a NUL character; give a folder"
        return
    folder = Path(value).absolute()
    if folder.resolve() == Path(folder.anchor):
        yield f"{name}={value!r} is the root of the file system; give a folder of its own"
        return
    nearest_there = next(p for p in [folder, *folder.parents] if os.path.exists(p))  # Path.exists raises where a parent may not be read
    if not nearest_there.is_dir():
        yield f"{name}={value!r}: {str(nearest_there)!r} is a file; give a folder"
    elif not os.access(nearest_there, os.W_OK | os.X_OK):
        yield f"{name}={value!r} cannot be written: no permission on {str(nearest_there)!r}"
