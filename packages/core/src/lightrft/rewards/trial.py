"""Rewards loaded once before ranks start, in a process of their own: what they import, hold or end is not the launcher's.

python -m lightrft.rewards.trial REPORT.json < SETTINGS_AND_COLUMNS.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightrft.config.load import make_config
from lightrft.config.reward_names import model_folder, server_address
from lightrft.config.schema import Config
from lightrft.errors import UserError
from lightrft.plugins.registry import Registry
from lightrft.rewards.adapters import OfTrl
from lightrft.rewards.load import RewardFunction, rewards_of

Columns = Mapping[str, Sequence[str]]
"""The names of the columns of each data file."""


def functions_of(config: Config) -> list[str]:
    """The rewards that are loaded by importing something."""
    return [name for name in config.reward if server_address(name) is None and model_folder(name) is None]


def loading_problems(
    config: Config, *, registry: Registry, columns: Columns | None = None, about_to: Callable[[str], None] = lambda name: None
) -> list[str]:
    """One line for each reward that cannot be loaded in this process, or takes a column that a file of `columns` does not have.
    `about_to` is told each name before.
    """
    problems: list[str] = []
    for name in functions_of(config):
        about_to(name)
        try:
            [loaded] = rewards_of(config.model_copy(update={"reward": [name], "reward_weights": []}), registry=registry)
            problems += _columns_lacking(name, loaded.function, columns or {})
        except UserError as error:
            problems.append(str(error))
    return problems


def _columns_lacking(name: str, function: RewardFunction, columns: Columns) -> Iterator[str]:
    """Of a function written for TRL, which takes columns by their names."""
    if not isinstance(function, OfTrl):
        return
    for file, names in columns.items():
        if lacking := function.lacking(names):
            takes = ", ".join(map(repr, lacking))
            yield f"reward {name!r} takes {takes}, and {file} has the columns {', '.join(names)}; rename one, or give a default"


def tried_apart(config: Config, *, columns: Columns | None = None) -> list[str]:
    """`loading_problems` of another process; a reward that ends that process is told too. None for rewards that are names alone."""
    if not config.allow_code_execution and not any(":" in name for name in functions_of(config)):
        return []
    with tempfile.TemporaryDirectory(prefix="lightrft-rewards-") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", __name__, str(report)]
        done = subprocess.run(command, input=json.dumps([config.model_dump(), columns]), capture_output=True, text=True, check=False)
        found: dict[str, Any] = {"now": "", "problems": [], "done": False}
        if report.exists():
            found = json.loads(report.read_text(encoding="utf-8"))
    problems: list[str] = found["problems"]
    if not found["done"]:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        said = f": {last}" if last else ""
        problems.append(f"reward {found['now']!r} ended the process that imported it (exit code {done.returncode}){said}")
    return problems


def main(report: Path) -> None:
    """The child's work: the report is on disk before each import, so that it tells which one ended the process."""
    settings, columns = json.load(sys.stdin)

    def write(now: str, problems: list[str], *, done: bool) -> None:
        report.write_text(json.dumps({"now": now, "problems": problems, "done": done}), encoding="utf-8")

    problems = loading_problems(
        make_config(settings), registry=Registry.discover(), columns=columns, about_to=lambda name: write(name, [], done=False)
    )
    write("", problems, done=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
