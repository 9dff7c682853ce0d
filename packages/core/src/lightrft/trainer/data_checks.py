"""Can the data be used? Files, columns, and rewards that rows name: looked at before a model loads, where a run would find out later."""

from __future__ import annotations

from lightrft.config.eval_files import eval_files
from lightrft.config.reward_names import called
from lightrft.config.schema import Config
from lightrft.data.rows import Table, load_table
from lightrft.errors import ConfigError, nearest
from lightrft.rewards.route import routed

MOST_PROBLEMS = 20


def check_data(config: Config, *, training: bool) -> None:
    """Reads every data file, `prompt_data` only for training. Local.

    Raises:
        DataError: a file cannot be read, has no rows, or a row without the column of the prompt or the answer.
        ConfigError: with `reward_key`, rows that name no reward, or one that is not there (nearest), the first 20 by their place; no row
            with that column.
    """
    files = [config.prompt_data] if training and config.prompt_data else []
    required = [key for key in (config.input_key, config.label_key) if key]
    tables = [load_table(path, required=required) for path in [*files, *eval_files(config.eval_data).values()]]
    if not config.reward_key:
        return
    problems = _routes(config, tables)
    if problems:
        more = [f"{len(problems) - MOST_PROBLEMS} more rows are wrong"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError(problems[:MOST_PROBLEMS] + more)


def _routes(config: Config, tables: list[Table]) -> list[str]:
    """What is wrong with the column `reward_key`."""
    names = [called(reward) for reward in config.reward]
    problems: list[str] = []
    columns: dict[str, None] = {}
    for table in tables:
        for index, row in enumerate(table.rows):
            columns |= dict.fromkeys(map(str, row))
            try:
                routed(row, reward_key=config.reward_key, names=names)
            except ValueError as error:
                problems.append(f"{table.where(index)}: {error}")
    if columns and config.reward_key not in columns:
        hint = nearest(config.reward_key, list(columns))
        problems.append(f"reward_key={config.reward_key!r}: no row has such a column{hint} (columns: {', '.join(columns)})")
    return problems
