"""The images of a row: where they stand in the prompt, and where each is read from. Nothing is opened here."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft.data.messages import Message
from lightrft.errors import DataError

MARK = "<image>"
"""Stands for an image in the text of a prompt."""

IMAGE = {"type": "image"}
FORMS = "a path, a data URI (base64), bytes, or a struct with 'bytes' or 'path', as `datasets` keeps images"


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """`key`: the column with a row's images, which rows may lack. `folder`: where relative paths start, and what no path leaves; empty:
    the folder of the data file. `token`: what stands for an image in the model's prompts; empty where it reads none, and `unread` says why.
    """

    key: str = ""
    folder: str = ""
    token: str = ""
    unread: str = "no model that reads images was named"


def column_images(value: Any, *, folder: Path, where: str, column: str) -> list[Any]:
    """Paths (inside `folder`) and bytes of a column's value: of one image, a list of images, or none.

    Raises:
        DataError: something else, a file that is not there, a path that leaves the folder, or an address on the network.
    """
    if value is None:
        return []
    many = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    return [image_source(one, folder=folder, where=f"{where}: column {column!r}") for one in (value if many else [value])]


def image_source(value: Any, *, folder: Path, where: str) -> Any:
    """One image as a path or bytes (a PIL image as it is); errors as `column_images`."""
    if isinstance(value, Mapping):
        inner = value.get("bytes") if value.get("bytes") is not None else value.get("path") or value.get("url")
        value = value if isinstance(inner, Mapping) or inner is None else inner
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return _decoded(value, where=where) if value.startswith("data:") else _file(value, folder=folder, where=where)
    if type(value).__module__.startswith("PIL."):
        return value
    raise DataError(f"{where} holds {value!r:.60}, which names no image; give {FORMS}")


def placed(messages: Sequence[Message], given: Sequence[Any], *, folder: Path, where: str) -> tuple[list[Message], tuple[Any, ...]]:
    """The messages with `{type: image}` where they show an image, and the images in this order.

    An image part shows the source that it names, or the next of the `given` ones, which the text `<image>` shows too. Where nothing shows
    them, they come first in the first turn of the user.

    Raises:
        DataError: not as many places as images; as `column_images` for what a part names.
    """
    placer = _Placer(list(given), folder, where)
    if given and not any(_shows(message["content"]) for message in messages):
        first = next((at for at, message in enumerate(messages) if message["role"] == "user"), 0)
        marks = MARK * len(given)
        messages = [{**m, "content": _before(marks, m["content"])} if at == first else m for at, m in enumerate(messages)]
    found = [{**message, "content": placer.content(message["content"])} for message in messages]
    if placer.given:
        raise DataError(f"{where}: the prompt shows {len(placer.sources)} of the row's {len(given)} images; write {MARK} for each")
    return found, tuple(placer.sources)


def text_parts(text: str) -> list[dict[str, str]]:
    """A text as a part of a content; nothing of an empty one."""
    return [{"type": "text", "text": text}] if text else []


def in_one_text(content: Any, token: str) -> str:
    """A content as one text, with `token` for each image."""
    return content if isinstance(content, str) else "".join(part.get("text", token) for part in content)


class _Placer:
    def __init__(self, given: list[Any], folder: Path, where: str) -> None:
        self.given, self.folder, self.where = given, folder, where
        self.marks = bool(given)
        self.number = len(given)
        self.sources: list[Any] = []

    def content(self, content: Any) -> Any:
        """A text without images stays a text."""
        parts = [new for part in (content if isinstance(content, list) else [content]) for new in self._part(part)]
        plain = [part for part in parts if not isinstance(part, dict)]
        if len(plain) == len(parts):
            return content
        return [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]

    def _part(self, part: Any) -> list[Any]:
        if isinstance(part, dict):
            source = part.get("source")
            where = f"{self.where}: an image of a message"
            self.sources.append(self._next() if source is None else image_source(source, folder=self.folder, where=where))
            return [dict(IMAGE)]
        if not self.marks or not isinstance(part, str):
            return [part]
        pieces = part.split(MARK)
        self.sources += [self._next() for _ in pieces[1:]]
        return [new for at, piece in enumerate(pieces) for new in ([dict(IMAGE)] if at else []) + ([piece] if piece else [])]

    def _next(self) -> Any:
        if not self.given:
            raise DataError(f"{self.where}: the prompt shows more images than the {self.number} that the row has; bring one for each place")
        return self.given.pop(0)


def _shows(content: Any) -> bool:
    return any(isinstance(part, dict) or MARK in (part or "") for part in (content if isinstance(content, list) else [content]))


def _before(marks: str, content: Any) -> Any:
    return [marks, *content] if isinstance(content, list) else marks + (content or "")


def _decoded(uri: str, *, where: str) -> bytes:
    head, comma, body = uri.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not begin with 'data:...;base64,'")
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} holds {uri!r:.40}, a data URI that cannot be read: {error}") from None


def _file(text: str, *, folder: Path, where: str) -> str:
    if "://" in text and not text.startswith("file://"):
        raise DataError(f"{where} names {text!r:.80}, an address on the network; a run reads files only: download it beside the data")
    path = (folder / Path(text.removeprefix("file://")).expanduser()).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{where} names {text!r:.80}, outside of {str(folder)!r}; set images_folder to a folder that holds it")
    if not path.is_file():
        raise DataError(f"{where} names {text!r:.80}, and there is no file {str(path)!r}")
    return str(path)
