"""What `prompt_data` and `eval_data` name. The one rule: a path that exists on this disk wins; else OWNER/NAME is a dataset of the hub.

OWNER/NAME:SUBSET and OWNER/NAME:SUBSET:SPLIT say more; OWNER/NAME::SPLIT is a split of the only subset. What ends as a data file does
(`data/train.jsonl`) is a path in any case. A word may be NAME=PATH, where the name is to be another than the file's or the dataset's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightrft.config.schema import Config
from lightrft.errors import ConfigError

POSSIBLE = "give a .jsonl or .parquet file, a `datasets` folder, or a hub name OWNER/NAME:SUBSET:SPLIT"
DEFAULT_SPLIT = "train"
FILE_ENDS = (".jsonl", ".parquet", ".json", ".csv", ".tsv", ".txt", ".arrow")
HUB_WORD = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(:(?P<subset>[\w.+-]*)(:(?P<split>\w[\w.-]*))?)?")


@dataclass(frozen=True)
class HubName:
    """A dataset of the hub; `subset` and `split` are empty where none is named."""

    repo: str
    subset: str = ""
    split: str = ""


def hub_name(path: str) -> HubName | None:
    """The dataset of the hub that `path` names; None for a path of this disk, and for what is neither.

    Example:
        >>> hub_name("openai/gsm8k:main:test")
        HubName(repo='openai/gsm8k', subset='main', split='test')
        >>> hub_name("data/train.jsonl") is None
        True
    """
    if path.endswith(FILE_ENDS) or os.path.exists(os.path.expanduser(path)):
        return None
    match = HUB_WORD.fullmatch(path)
    return HubName(f"{match['owner']}/{match['name']}", match["subset"] or "", match["split"] or "") if match else None


def prompt_sources(prompt_data: str) -> dict[str, str]:
    """Paths by name, in order, of the sources that `prompt_data` names, separated by commas; none of an empty text.

    Raises:
        ConfigError: a name twice, or nothing between two commas.

    Example:
        >>> prompt_sources("a/easy.jsonl,hard=b/train.parquet,openai/gsm8k:main")
        {'easy': 'a/easy.jsonl', 'hard': 'b/train.parquet', 'gsm8k': 'openai/gsm8k:main'}
    """
    words = [prompt_data] if os.path.exists(prompt_data) else [word.strip() for word in prompt_data.split(",")]
    if len(words) > 1 and not all(words):
        raise ConfigError([f"prompt_data={prompt_data!r} has nothing between two commas; name the sources as PATH,PATH"])
    return named_sources("prompt_data", [word for word in words if word])


def named_sources(setting: str, words: Sequence[str]) -> dict[str, str]:
    """Paths by name, in order; each word is a path, or NAME=PATH. Raises ConfigError: a name twice."""
    found: dict[str, str] = {}
    for word in words:
        name, path = _named(word)
        if name in found:
            raise ConfigError([f"{setting} names {name!r} twice ({found[name]!r}, {path!r}); give one of them as NAME=PATH"])
        found[name] = path
    return found


def is_there(path: str) -> bool:
    """Whether it exists here, or may exist on the hub."""
    return os.path.exists(os.path.expanduser(path)) or hub_name(path) is not None


def missing(setting: str, path: str) -> Iterator[str]:
    """A line where `path` is neither on this disk nor a hub name."""
    if not is_there(path):
        yield f"{setting}={path!r}: no such file or folder" + ("" if path.endswith(FILE_ENDS) else ", and not a hub name OWNER/NAME")


def prompt_data_problems(config: Config) -> Iterator[str]:
    """What is wrong with `prompt_data` and its weights, a line each; whether a hub has the dataset is seen when it is read."""
    try:
        sources = prompt_sources(config.prompt_data)
    except ConfigError as error:
        yield from error.problems
        return
    for path in sources.values():
        yield from missing("prompt_data", path)
    weights = config.prompt_data_weights
    if weights and len(weights) != len(sources):
        yield (
            f"prompt_data_weights has {len(weights)} numbers, and prompt_data names {len(sources)} sources "
            f"({', '.join(sources) or 'none'}); give one number for each"
        )


def eval_data_problems(path: str) -> Iterator[str]:
    """What is wrong with one of the evaluation's sources."""
    yield from missing("eval_data", path)
    hub = hub_name(path)
    if hub and not hub.split:
        yield f"eval_data={path!r} names no split of the dataset; write it out, as {hub.repo}:{hub.subset}:test"


def _named(word: str) -> tuple[str, str]:
    match = re.fullmatch(r"([\w.-]+)=(.+)", word)
    if match and not os.path.exists(word):
        return match[1], match[2]
    hub = hub_name(word)
    return (hub.repo.partition("/")[2] if hub else Path(word).stem), word
