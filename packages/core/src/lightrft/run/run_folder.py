"""The folder of a run: what is in it, and when it may be used. The configuration in it is the sign that it holds a run."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lightrft.config.schema import Config
from lightrft.errors import RunFolderError
from lightrft.observe.warnings_log import WARNINGS_FILE
from lightrft.plugins.registry import Registry
from lightrft.run import lock
from lightrft.run.checkpoint_folder import FOLDER

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
SUMMARY_FILE = "summary.json"
BACKEND_FILE = "backend.json"
ENGINE_FILE = "engine.json"
UNVERIFIED_FILE = "unverified_weights.json"
FAILURE_FILE = "failure.txt"
OWN_FILES = (
    CONFIG_FILE, ENVIRONMENT_FILE, BACKEND_FILE, ENGINE_FILE, UNVERIFIED_FILE, FAILURE_FILE, SUMMARY_FILE, "model", "adapter", "base",
    FOLDER,
)  # fmt: skip
OWN_LOGS = (
    "metrics.jsonl",
    "plots",
    WARNINGS_FILE,
    "samples.jsonl",
    "distributions.jsonl",
    "phases.json",
    "eval_samples-*.jsonl",
    "tensorboard",
    "wandb-id.txt",
    "trackio-id.txt",
    "mlflow-id.txt",
    "mlflow.db",
    "mlflow-artifacts",
    "swanlab-id.txt",
    "swanlab",
    "metrics.prom",
)
"""What a run writes into its folder and its log folder, and what an overwriting run removes; `data/` stays: the demo puts it there
before.
"""


def open_run_folder(config: Config, *, backend: Mapping[str, Any], registry: Registry | None = None, goes_on: bool = False) -> Path:
    """Makes the run folder and writes the resolved configuration, the environment and what the training backend was told into it.

    For rank 0 alone. `backend` is `StrategyBase.describe()`; `goes_on` says that the run in the folder is resumed.

    Raises:
        RunFolderError: it holds another run and `overwrite_output_dir` is not set, it cannot be written, or a folder or a pipe has the
            name of a file that the run writes (or a file that of a folder).
    """
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG_FILE).exists() and not goes_on:
            _make_room(config)
        (folder / SUMMARY_FILE).unlink(missing_ok=True)
        log_folder(config).mkdir(parents=True, exist_ok=True)
        _check_kinds(config)
        _write(folder / ENVIRONMENT_FILE, json.dumps(_environment(registry or Registry.discover()), indent=2) + "\n")
        _write(folder / BACKEND_FILE, json.dumps(dict(backend), indent=2) + "\n")
        _write(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise RunFolderError(f"output_dir={config.output_dir!r} cannot be written: {error.strerror or error}") from error
    return folder


def folders_of(config: Config) -> list[Path]:
    """The run folder, and the log folder where that is another: the places that no other run may write to."""
    return list(dict.fromkeys([Path(config.output_dir).expanduser(), log_folder(config)]))


def hold_folders(config: Config, *, log: Callable[[str], None]) -> None:
    """Takes the run's folders for this process, once; a lock that a killed run left is told. For rank 0 alone.

    Raises:
        RunFolderError: another process runs there.
    """
    for folder in folders_of(config):
        if (before := lock.hold(folder)) is not None:
            log(f"{str(folder)!r}: a run that has ended without a word ({before}) left its lock, which is taken over")


def release_folders(config: Config) -> None:
    """Gives them back; nothing where this process does not have them."""
    for folder in folders_of(config):
        lock.release(folder)


def log_folder(config: Config) -> Path:
    """Where logs and plots go: `log_dir`, else the run folder."""
    return Path(config.log_dir or config.output_dir)


def write_engine(config: Config, arguments: Mapping[str, Any]) -> None:
    """What the engine's library was built with, into the run folder; nothing where the engine says nothing. For rank 0 alone."""
    if arguments:
        _write(Path(config.output_dir) / ENGINE_FILE, json.dumps(dict(arguments), indent=2, default=str) + "\n")


def write_unverified(config: Config, names: Sequence[str]) -> None:
    """The weights whose arrival in the engine no checksum verifies, a list of names, into the run folder. For rank 0 alone."""
    _write(Path(config.output_dir) / UNVERIFIED_FILE, json.dumps(list(names), indent=2) + "\n")


def append_failure(folder: Path, text: str) -> None:
    """What ended a run, with time and tracebacks, for a bug report; nothing where no run was begun. By the launcher, after its ranks."""
    if (folder / CONFIG_FILE).is_file():
        with suppress(OSError), (folder / FAILURE_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')}\n{text}\n\n")


def write_summary(config: Config, summary: Mapping[str, Any]) -> Path:
    """Writes `summary.json` into the run folder, whole or not at all."""
    path = Path(config.output_dir) / SUMMARY_FILE
    _write(path, json.dumps(dict(summary), indent=2) + "\n")
    return path


def _make_room(config: Config) -> None:
    if not config.overwrite_output_dir:
        remedies = "choose another folder, set --overwrite_output_dir, or --resume_from latest"
        raise RunFolderError(f"output_dir={config.output_dir!r} holds another run; {remedies}")
    for path in _own(config):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _own(config: Config) -> list[Path]:
    """What a run writes, in its folder and in that of its logs; of names with a star what is there."""
    folder, logs = Path(config.output_dir), log_folder(config)
    return [*(folder / name for name in OWN_FILES), *(path for name in OWN_LOGS for path in logs.glob(name))]


def _check_kinds(config: Config) -> None:
    """Seen now, and not when it is written to hours later, or waited for as a pipe is."""
    for path in _own(config):
        is_folder = not path.suffix
        if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
            found = "a folder" if path.is_dir() else "a file" if path.is_file() else "a pipe or a device"
            raise RunFolderError(f"{str(path)!r} is {found}, and the run writes a {'folder' if is_folder else 'file'} there; move it away")


def _environment(registry: Registry) -> dict[str, Any]:
    plugins = {f"{e.kind}:{e.name}": str(e.provider) for e in registry.entries() if e.state == "ok"}
    return {
        "lightrft": version("lightrft"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "plugins": plugins,
    }


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
