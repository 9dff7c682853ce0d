"""What a reward setting names: a server (`http://host:port/path`), a model (`model:FOLDER`), a function of one's own (PLACE is
`module:function` or `path/to/file.py:function`) or of another library (`trl:PLACE`, `verl:PLACE`), each with `NAME=` before it where it is
to be called so; else a plugin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"(?:(?P<name>[^=:/]*)=)?(?P<url>https?://.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class ServerAddress:
    """`name` is what metrics call the reward: the given one, else the host and the path."""

    name: str
    url: str


def server_address(reward: str) -> ServerAddress | None:
    """The address that a reward's name is, or None where it is a plugin, a function or a file."""
    match = _ADDRESS.fullmatch(reward)
    if match is None:
        return None
    url = match["url"]
    return ServerAddress(match["name"] or url.partition("://")[2].partition("?")[0].rpartition("@")[2].strip("/"), url)


@dataclass(frozen=True)
class ModelFolder:
    """`name` is what metrics call the reward: the given one, else the folder's."""

    name: str
    path: str


def model_folder(reward: str) -> ModelFolder | None:
    """The folder or hub name of a reward model, or None where the name is none: `model:FOLDER`, `name=model:FOLDER`."""
    match = re.fullmatch(r"(?:(?P<name>[\w.-]+)=)?model:(?P<path>.+)", reward)
    return None if match is None else ModelFolder(match["name"] or match["path"].rstrip("/").rpartition("/")[2], match["path"])


RESERVED = ("reward", "length_mean", "overlong")
"""Names of other metrics in the groups `reward/` and `eval/`."""


@dataclass(frozen=True)
class Function:
    """A function `place` (`module:function` or `path/to/file.py:function`), written for the library `adapter` where that is not empty.

    `name` is what metrics call the reward: the given one, else the function's, with its file's before it where the function's is reserved.
    """

    name: str
    adapter: str
    place: str


def reward_function(reward: str) -> Function | None:
    """The function that a reward's name is, `[NAME=][trl:|verl:]PLACE`; None for a server, a model or a plugin. Nothing is looked up."""
    if server_address(reward) or model_folder(reward) or ":" not in reward:
        return None
    match = re.fullmatch(r"(?:(?P<name>[\w.-]+)=)?(?:(?P<adapter>trl|verl):(?=.+:))?(?P<place>.+)", reward, re.DOTALL)
    assert match is not None, reward
    return Function(match["name"] or _short(match["place"]), match["adapter"] or "", match["place"])


def _short(place: str) -> str:
    module, _, function = place.rpartition(":")
    stem = Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]
    return f"{stem}.{function}" if function in RESERVED else function


def called(reward: str) -> str:
    """What metrics, the console, and the column `reward_key` of the data call a reward."""
    found = server_address(reward) or model_folder(reward) or reward_function(reward)
    return found.name if found else reward


def named_alike(rewards: Sequence[str]) -> list[str]:
    """One line for each name that two of the rewards have: metrics could not tell them apart."""
    shown = [called(reward) for reward in rewards]
    return [
        f"reward {name!r} is named twice; name it once and give it a weight in reward_weights"
        if name in rewards
        else f"two rewards are called {name!r}; give them names of their own: name=file.py:function, name=http://..., name=model:..."
        for name in dict.fromkeys(shown)
        if shown.count(name) > 1
    ]


def address_problem(reward: str, address: ServerAddress) -> str:
    """What is wrong with the address, or nothing. Never shows a password."""
    if "=" in reward.partition("://")[0] and not re.fullmatch(r"[\w.-]+", reward.partition("=")[0]):
        return f"reward={reward.partition('://')[0]}://...: the name before = may have letters, digits, '.', '-' and '_'"
    try:
        parts = urlsplit(address.url)
        if parts.username is not None or parts.password is not None:
            return (
                f"reward {address.name!r}: no user or password in an address, which is logged; set reward_auth_env to a variable with them"
            )
        if not parts.hostname or parts.port == 0:
            return f"reward={reward!r} names no host; the form is http://host:port/path"
    except ValueError as error:
        return f"reward={reward!r} is no address: {error}; the form is http://host:port/path"
    if re.search(r"[\s\x00-\x1f\x7f]", address.url) or not address.url.isascii():
        return f"reward={reward!r} is no address: it has spaces or signs that must be percent-encoded"
    if parts.fragment:
        return f"reward={reward!r}: a server never sees what stands after '#'; leave it out"
    return ""
