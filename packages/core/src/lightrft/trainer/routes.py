"""Do the data name only rewards that there are? Looked at before a model loads: a run would find out at that row."""

from __future__ import annotations

from lightrft.config.eval_files import eval_files
from lightrft.config.reward_names import called
from lightrft.config.schema import Config
from lightrft.data.rows import load_table
from lightrft.errors import ConfigError, nearest
from lightrft.rewards.route import routed

MOST_PROBLEMS = 20


def check_routes(config: Config) -> None:
    """Reads the column `reward_key` of every data file; nothing where it is not set. Local.

    Raises:
        ConfigError: rows that name no reward, or one that is not there (nearest), the first 20 by their place; no row with that column.
        DataError: a file cannot be read.
    """
    if not config.reward_key:
        return
    names = [called(reward) for reward in config.reward]
    problems: list[str] = []
    columns: dict[str, None] = {}
    for path in [*([config.prompt_data] if config.prompt_data else []), *eval_files(config.eval_data).values()]:
        table = load_table(path, required=[])
        for index, row in enumerate(table.rows):
            columns |= dict.fromkeys(map(str, row))
            try:
                routed(row, reward_key=config.reward_key, names=names)
            except ValueError as error:
                problems.append(f"{table.where(index)}: {error}")
    if columns and config.reward_key not in columns:
        hint = nearest(config.reward_key, list(columns))
        problems.append(f"reward_key={config.reward_key!r}: no row has such a column{hint} (columns: {', '.join(columns)})")
    if problems:
        more = [f"{len(problems) - MOST_PROBLEMS} more rows are wrong"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError(problems[:MOST_PROBLEMS] + more)
