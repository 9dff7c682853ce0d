"""From the flags of `lightrft score` to a file of scores. Its flags, the reward settings among them, and the rows of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightrft.cli.flags import FlagParser
from lightrft.config.arguments import override_parser
from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.config.reward_names import model_folder
from lightrft.config.schema import Config
from lightrft.errors import ConfigError, nearest
from lightrft.experience.offline import score_file
from lightrft.plugins.registry import Registry
from lightrft.rewards.load import rewards_of

USAGE = "lightrft score --reward NAME [NAME ...] --data FILE --out SCORES.jsonl [--reward_weights W ...] [--json]"
OWN = ("data", "out", "json")


def run_score(words: Sequence[str], *, description: str) -> tuple[dict[str, Any], bool]:
    """The summary of `score_file`, and whether it is wanted as JSON.

    Raises:
        ConfigError: wrong flags or settings, or rows that are no samples; all of a kind at once.
        UserError: a file or a reward that cannot be used.
    """
    parser = FlagParser(prog="lightrft score", usage=USAGE, description=description, allow_abbrev=False)
    parser.add_argument("--data", metavar="FILE", help="rows with prompt, completion and answer: .jsonl or .parquet")
    parser.add_argument("--out", metavar="FILE", help="where the rows with their scores go (JSONL); replaced if it is there")
    parser.add_argument("--json", action="store_true", help="make the last line of stdout one JSON object")
    override_parser(parser, only="reward")
    known, rest = parser.parse_known_args([_spelled(word) for word in words])
    given = vars(known)
    flags = [f"--{name}" for name in (*OWN, *(n for n in Config.model_fields if n.startswith("reward")))]
    problems = [f"unexpected argument {word!r}{nearest(word, flags)} (`lightrft score --help` lists all flags)" for word in rest]
    problems += [f"--{name} is not set; usage: {USAGE}" for name in ("data", "out") if not given[name]]
    if "reward" not in given:
        problems.append("--reward is not set; name at least one (`lightrft plugins` lists them)")
    if given["data"] and not Path(given["data"]).expanduser().exists():
        problems.append(f"data={given['data']!r}: no such file")
    registry = Registry.discover()
    config = Config()
    try:
        config = make_config({name: value for name, value in given.items() if name not in OWN})
        problems += check_rewards(config, registry=registry)
        if config.reward_shard_size > 1:
            problems.append(f"reward_shard_size={config.reward_shard_size}: `lightrft score` is one process; leave it out")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    if not any(model_folder(reward) for reward in config.reward):
        rewards = rewards_of(config, registry=registry)
        return score_file(given["data"], out=given["out"], rewards=rewards, reward_key=config.reward_key), given["json"]
    from lightrft.cli.score_models import score_with_models  # torch and transformers, which other rewards can do without

    return score_with_models(config, given["data"], out=given["out"], registry=registry), given["json"]


def _spelled(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word
