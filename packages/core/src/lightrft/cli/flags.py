"""What the user typed: the flags of a command as text, and every word among them that is unknown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lightrft.config.arguments import override_parser
from lightrft.config.engine_args import taken
from lightrft.config.other_names import named_here
from lightrft.config.schema import Config
from lightrft.config.sections import flags_of, installed_sections
from lightrft.errors import ConfigError, nearest
from lightrft.types import REFUSED_SAMPLING

OWN = ("task", "config", "nproc_per_node", "num_workers", "launcher", "max_restarts", "json")
"""Flags of the commands themselves; all others are settings."""

OF_RECIPES = ("config", "launcher", "num_workers", "max_restarts")
"""Those of them that only commands with a recipe have."""

TASKS = ("sort", "vision", "tools", "gridworld")
"""Of the demo."""

LAUNCHERS = ("torchrun", "ray")
RESTARTS = "how often a run whose rank fails goes on from its newest checkpoint (default: never)"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Settings as they were typed, the command's own flags, and what is wrong so far. Counts None: not given (or wrong: see problems)."""

    settings: dict[str, Any]
    recipe: str | None
    nproc: int | None
    num_workers: int | None = None
    launcher: str = LAUNCHERS[0]
    max_restarts: int = 0
    as_json: bool
    task: str = "sort"
    """Of the demo."""

    problems: list[str] = field(default_factory=list)


def parse(
    words: Sequence[str],
    *,
    command: str,
    description: str,
    nproc_help: str,
    takes_recipe: bool = True,
    short: Mapping[str, str] | None = None,
) -> Flags:
    """Reads the words after `lightrft COMMAND`. Names may be spelled with `-` or `_`. `--help` prints and exits. `short` has
    names of this command for settings.

    Raises:
        ConfigError: a flag without its value.
    """
    usage = f"lightrft {command} {'[--config FILE] ' if takes_recipe else ''}[--nproc-per-node N] [--json] [--SETTING VALUE ...]"
    parser = FlagParser(prog=f"lightrft {command}", usage=usage, description=description, allow_abbrev=False)
    if takes_recipe:
        parser.add_argument("--config", metavar="FILE", help="a recipe (YAML); flags win over it")
        parser.add_argument("--launcher", choices=LAUNCHERS, default=LAUNCHERS[0], help="what starts the ranks (default: torchrun's agent)")
        parser.add_argument("--num-workers", "--num_workers", metavar="N", help="ranks on Ray's cluster (--launcher ray; default: 1)")
    if command == "demo":
        parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="what it learns (default: sort)")
    if command == "train":
        parser.add_argument("--max-restarts", "--max_restarts", metavar="N", help=RESTARTS)
    parser.add_argument("--nproc-per-node", "--nproc_per_node", metavar="N", help=nproc_help)
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    override_parser(parser)
    words, engine_args = taken(words)
    known, rest = parser.parse_known_args([_spelled(_lengthened(word, short or {})) for word in words])
    given = vars(known) | engine_args
    problems = _unknown(rest, takes_recipe=takes_recipe)
    nproc = _count(given["nproc_per_node"], "--nproc-per-node", problems)
    launcher, num_workers = given.get("launcher", LAUNCHERS[0]), _count(given.get("num_workers"), "--num-workers", problems)
    if launcher == "ray" and nproc is not None:
        problems.append("--nproc-per-node has no effect with --launcher ray, which places ranks itself; use --num-workers")
    if launcher != "ray" and num_workers is not None:
        problems.append("--num-workers has no effect without --launcher ray; use --nproc-per-node")
    settings = {name: value for name, value in given.items() if name not in OWN}
    return Flags(
        settings=settings,
        recipe=given.get("config"),
        nproc=nproc,
        num_workers=num_workers,
        launcher=launcher,
        max_restarts=_count(given.get("max_restarts"), "--max-restarts", problems, of="restarts") or 0,
        as_json=given["json"],
        task=given.get("task", "sort"),
        problems=problems,
    )


class FlagParser(argparse.ArgumentParser):
    """Raises ConfigError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([f"{message} (`{self.prog} --help` lists all flags)"])


def _lengthened(word: str, short: Mapping[str, str]) -> str:
    name, equals, value = word.removeprefix("--").partition("=")
    return f"--{short[name]}{equals}{value}" if word.startswith("--") and name in short else word


def _spelled(word: str) -> str:
    """`--engine-type=hf` as `--engine_type=hf`, for names that we know; anything else as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    no = "no-" if name.startswith("no-") else ""
    plain = name.removeprefix(no).replace("-", "_")
    known = plain in Config.model_fields or plain in OWN or plain == "disable_engine_sleep" or "." in plain
    return f"--{no}{plain}{equals}{value}" if known else word


def _unknown(rest: Sequence[str], *, takes_recipe: bool) -> list[str]:
    of_plugins = [flag for flag, _, _ in flags_of(installed_sections())]
    names = [f"--{name}" for name in (*OWN, *Config.model_fields, *of_plugins) if takes_recipe or name not in OF_RECIPES]
    problems = []
    after_flag = False
    for word in rest:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            refused = REFUSED_SAMPLING.get(flag[2:].replace("-", "_"))
            hint = named_here(flag[2:]) or nearest(flag.replace("-", "_").replace("__", "--", 1), names)
            problems.append(f"{flag} is not available: {refused}" if refused else f"unknown flag {flag!r}{hint}")
            after_flag = True
        elif not after_flag:  # else it is the unknown flag's value
            answer = named_here(word.partition("=")[0]) or "; settings have the form --name value, lists --name one,two"
            problems.append(f"unexpected argument {word!r}{answer}")
    return problems


def _count(text: str | None, flag: str, problems: list[str], *, of: str = "ranks") -> int | None:
    if text is None:
        return None
    if text.isdigit() and int(text) >= 1:
        return int(text)
    problems.append(f"{flag} {text!r}: give a whole number of {of}, at least 1")
    return None
