"""What a script gives `lightrft.train` beside the settings: reward functions, and rows in memory that are kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.config.ignored import is_given
from lightrft.config.schema import Config
from lightrft.distributed.consensus import together
from lightrft.distributed.world import World
from lightrft.errors import ConfigError, DataError
from lightrft.rewards.adapters import refusal
from lightrft.rollout.images import as_data_uri
from lightrft.trainer.preflight import raise_all

Rows = Iterable[str | Mapping[str, Any]]
DATA_FOLDER = "data"
"""Of the run folder; an overwriting run leaves it."""


def in_place_of(
    config: Config, *, rewards: Sequence[Callable[..., Any]] | None, prompts: Rows | None, eval_prompts: Rows | None
) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by the setting that they stand for. Local; nothing is written.

    Raises:
        ConfigError: a setting says the same as an argument, or an argument is empty or of another kind.
    """
    problems = []
    for argument, value, setting in (
        ("rewards", rewards, "reward"),
        ("prompts", prompts, "prompt_data"),
        ("eval_prompts", eval_prompts, "eval_data"),
    ):
        if value is not None and is_given(config, setting):
            problems.append(f"{argument}=... and {setting}={getattr(config, setting)!r} are both given; leave one out")
    functions = rewards if isinstance(rewards, (list, tuple)) else ()
    if rewards is not None and not functions:
        problems.append(f"rewards={rewards!r:.60} is not a list of functions (samples) -> one number each; give at least one")
    for index, function in enumerate(functions):
        if problem := refusal(function, input_key=config.input_key):
            problems.append(f"rewards[{index}]={getattr(function, '__name__', function)!r:.60} {problem}")
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for argument, given, setting in (("prompts", prompts, "prompt_data"), ("eval_prompts", eval_prompts, "eval_data")):
        if given is not None:
            try:
                rows[setting] = rows_of(argument, given, config)
            except ConfigError as error:
                problems += error.problems
    raise_all(problems)
    return rows


def without_answers(config: Config, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Config:
    """Prompts that are texts alone have no answers to look for: `label_key` is empty then, unless the settings name one. Local."""
    given = [row for of_setting in rows.values() for row in of_setting]
    from_files = any(is_given(config, name) for name in ("prompt_data", "eval_data", "label_key", "sft_steps"))
    if not given or from_files or any(set(row) != {config.input_key} for row in given):
        return config
    return config.model_copy(update={"label_key": ""})


def keep_rows(config: Config, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, world: World) -> Config:
    """Writes the rows as `data/prompt_data.jsonl` and `data/eval_data.jsonl` of the run folder; the settings that name them. Collective.

    Raises:
        DataError: a row holds what is no JSON (PeerError on the other ranks), or the folder cannot be written.
    """
    folder = Path(config.output_dir) / DATA_FOLDER
    paths = {setting: folder / f"{setting}.jsonl" for setting in rows}
    for setting, path in paths.items():
        together(world, f"keeping {setting}", partial(write_rows, path, rows[setting]), rank_0_only=True)
    named = {setting: str(path) if setting == "prompt_data" else [str(path)] for setting, path in paths.items()}
    return config.model_copy(update=named)


def rows_of(argument: str, given: Rows, config: Config) -> list[Mapping[str, Any]]:
    """Texts as rows with the column `input_key`, mappings as they are. Raises ConfigError for anything else, by its place."""
    return [_row(argument, index, one, config) for index, one in enumerate(given)]


def _row(argument: str, index: int, one: Any, config: Config) -> Mapping[str, Any]:
    if isinstance(one, str):
        return {config.input_key: one}
    if isinstance(one, Mapping):
        return one
    raise ConfigError([f"{argument}[{index}]={one!r:.60} is a {type(one).__name__}; expected a text, or a mapping of columns"])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line of JSON for each, images as data URIs. Raises DataError: a row holds what is no JSON, or the file cannot be written."""
    lines = []
    for index, row in enumerate(rows):
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, default=as_data_uri) + "\n")
        except (TypeError, ValueError) as error:
            what = f"row {index} of {path.stem} holds what is no JSON ({error})"
            raise DataError(f"{what}; give texts, numbers, images, lists and mappings") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
