"""The one place where paths of the settings are expanded, in whatever way a setting came in: `~` and `~user` become the home folder,
`$NAME` and `${NAME}` what the environment has under that name.
"""

from __future__ import annotations

import os
import re

from pydantic_core import PydanticCustomError

VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def expanded(path: str) -> str:
    """The path with its home folder and variables written out. Raises PydanticCustomError for a user or a variable that is not there."""
    path = _filled(path)
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise PydanticCustomError("no_home", "there is no home folder of {user}; write the path out", {"user": path.split("/")[0]})
    return found


def _filled(text: str) -> str:
    """With the values of the environment's variables. Without this a folder called `$HOME` would be made."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise PydanticCustomError("no_variable", "there is no environment variable {name}; set it, or write it out", {"name": name})
        return os.environ[name]

    return VARIABLE.sub(value, text)


def expanded_sources(words: str) -> str:
    """As `expanded_word`, for words with commas between them."""
    return ",".join(expanded_word(word) for word in words.split(","))


def expanded_word(word: str) -> str:
    """As `expanded`, for words that hold a path: NAME=PATH, path/to/file.py:function, NAME=model:FOLDER, trl:path/to/file.py:function."""
    word = word if "://" in word else _filled(word)
    match = re.fullmatch(r"((?:[\w.-]+=)?(?:(?:model|trl|verl):)?)(~.*)", word, re.DOTALL)
    return match[1] + expanded(match[2]) if match else word
