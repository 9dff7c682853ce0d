"""The one place where paths of the settings are expanded: `~` and `~user` become the home folder, in whatever way a setting came in."""

from __future__ import annotations

import os
import re

from pydantic_core import PydanticCustomError


def expanded(path: str) -> str:
    """The path with its home folder written out. Raises PydanticCustomError for a user that is not there."""
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise PydanticCustomError("no_home", "there is no home folder of {user}; write the path out", {"user": path.split("/")[0]})
    return found


def expanded_sources(words: str) -> str:
    """As `expanded_word`, for words with commas between them."""
    return ",".join(expanded_word(word) for word in words.split(","))


def expanded_word(word: str) -> str:
    """As `expanded`, for words that hold a path: NAME=PATH, path/to/file.py:function, NAME=model:FOLDER, trl:path/to/file.py:function."""
    match = re.fullmatch(r"((?:[\w.-]+=)?(?:(?:model|trl|verl):)?)(~.*)", word, re.DOTALL)
    return match[1] + expanded(match[2]) if match else word
