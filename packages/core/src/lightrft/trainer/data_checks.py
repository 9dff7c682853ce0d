"""Checks of the data before a model loads: files, columns, labels, and rewards that rows name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lightrft.config.column_names import paths
from lightrft.config.data_sources import prompt_sources
from lightrft.config.eval_files import eval_files
from lightrft.config.reward_checks import NEED_ANSWERS
from lightrft.config.reward_names import called
from lightrft.config.schema import Config
from lightrft.data.columns import answers_at, names_of
from lightrft.data.rows import Table, load_table
from lightrft.errors import ConfigError, DataError, nearest
from lightrft.rewards.route import routed

MOST_PROBLEMS = 20


def check_file(config: Config, path: str, *, required: Sequence[str]) -> None:
    """Reads one data file and looks at every row's prompt column and label. Local.

    Raises:
        DataError: a file that cannot be read, a row without a `required` value, or a label that is no answer.
        ConfigError: rows without a label that a reward needs, the first 20 by their place.
    """
    table = load_table(path, required=required, known=[config.label_key] if config.label_key else [])
    names = [called(reward) for reward in config.reward]
    problems = []
    for index, row in enumerate(table.rows):
        where = table.where(index)
        if config.label_key and answers_at(row, config.label_key, where=where):
            continue
        needing = [name for name in _counting(config, row, names) if name in NEED_ANSWERS and name in config.reward]
        if needing and config.label_key:
            problems.append(f"{where}: no column {config.label_key!r} (missing or null), and reward {needing[0]!r} needs an answer")
    raise_first(problems)


def _counting(config: Config, row: Mapping[str, Any], names: list[str]) -> Collection[str]:
    try:
        return routed(row, reward_key=config.reward_key, names=names)
    except ValueError:  # told by `check_data`
        return []


def raise_first(problems: list[str]) -> None:
    """Raises ConfigError with the first problems, and how many more there are."""
    if problems:
        more = [f"{len(problems) - MOST_PROBLEMS} more rows are wrong"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError(problems[:MOST_PROBLEMS] + more)


def check_data(config: Config, *, training: bool) -> None:
    """Reads every data file, `prompt_data` only for training. Local.

    Raises:
        DataError: a file cannot be read, has no rows, or a row without the column of the prompt or the answer.
        ConfigError: with `reward_key`, rows that name no reward, or one that is not there (nearest), the first 20 by their place; no row
            with that column.
    """
    files = prompt_sources(config.prompt_data).values() if training else ()
    known = [config.label_key] if config.label_key else []
    tables = [load_table(path, required=[config.input_key], known=known) for path in [*files, *eval_files(config.eval_data).values()]]
    if config.reward_key:
        raise_first(_routes(config, tables))


def columns_asked_for(config: Config, *, training: bool) -> dict[str, list[str]]:
    """The names of the columns of each data file, where a reward of the settings takes columns by their names; else nothing. Local.

    A file that cannot be read is left out: `check_file` tells it.
    """
    if not any(reward.startswith("trl:") for reward in config.reward):
        return {}
    found = {}
    for path in [*(prompt_sources(config.prompt_data).values() if training else ()), *eval_files(config.eval_data).values()]:
        with suppress(DataError):
            found[path] = names_of(load_table(path, required=[]).rows)
    return found


def _routes(config: Config, tables: list[Table]) -> list[str]:
    """What is wrong with the column `reward_key`."""
    names = [called(reward) for reward in config.reward]
    problems: list[str] = []
    columns: dict[str, None] = {}
    for table in tables:
        for index, row in enumerate(table.rows):
            columns |= dict.fromkeys([*row, *paths(row)])
            try:
                routed(row, reward_key=config.reward_key, names=names)
            except ValueError as error:
                problems.append(f"{table.where(index)}: {error}")
    if columns and config.reward_key not in columns:
        hint = nearest(config.reward_key, list(columns))
        problems.append(f"reward_key={config.reward_key!r}: no row has such a column{hint} (columns: {', '.join(columns)})")
    return problems
