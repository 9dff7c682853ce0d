"""The images and videos of a row: where they stand in the prompt, and where each is read from. Nothing is opened here."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft.data.messages import Message
from lightrft.errors import DataError
from lightrft.types import Video

MARKS = {"image": "<image>", "video": "<video>"}
"""What stands for an image, or a video, in the text of a prompt."""

LONGEST_PATH = 255
"""Characters; what is longer is likely an image."""

FORMS = "a path, a data URI (base64), bytes, or a struct with 'bytes' or 'path', as `datasets` keeps images"


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """`key`: the column with a row's images, which rows may lack. `folder`: where relative paths start, and what no path leaves; empty:
    the folder of the data file. `token`: what stands for an image in the model's prompts; empty where it reads none, and `unread` says why.
    `videos_key`, `video_token` and `videos_unread` likewise.
    """

    key: str = ""
    videos_key: str = ""
    video_token: str = ""
    videos_unread: str = "no model that reads videos was named"
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


def column_videos(value: Any, *, folder: Path, where: str, column: str) -> list[Video]:
    """As `column_images`: of one animation, a list of videos (animations, and lists of frames), or none."""
    if value is None:
        return []
    many = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
    return [video_source(one, folder=folder, where=f"{where}: column {column!r}") for one in (value if many else [value])]


def video_source(value: Any, *, folder: Path, where: str) -> Video:
    """An animation's path or bytes, or the sources of a list of frames; errors as `column_images`."""
    if type(value).__module__.startswith("PIL."):
        raise DataError(f"{where} holds an image where a video is expected; a video is a list of its frames, in the list of videos")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return Video(frames=tuple(image_source(one, folder=folder, where=f"{where}, frame {n}") for n, one in enumerate(value)))
    return Video(frames=image_source(value, folder=folder, where=where))


def image_source(value: Any, *, folder: Path, where: str) -> Any:
    """One image as a path or bytes (a PIL image as it is); errors as `column_images`."""
    if isinstance(value, Mapping):
        inner = value.get("bytes") if value.get("bytes") is not None else value.get("path") or value.get("url")
        value = value if isinstance(inner, Mapping) or inner is None else inner
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return _decoded(value, where=where) if value[:5].lower() == "data:" else _file(value, folder=folder, where=where)
    if type(value).__module__.startswith("PIL."):
        return value
    raise DataError(f"{where} holds {value!r:.60}, which names no image; give {FORMS}")


def placed(
    messages: Sequence[Message], given: Mapping[str, Sequence[Any]], *, folder: Path, where: str
) -> tuple[list[Message], tuple[Any, ...]]:
    """The messages with `{type: image}` and `{type: video}` where they show one, and these in their order.

    `given` are a row's images and videos by kind. A part shows the source that it names, or the next of the `given` ones of its kind, which
    the text `<image>` or `<video>` shows too. Those of a kind that nothing shows come first in the first turn of the user.

    Raises:
        DataError: not as many places as images, or videos; as `column_images` for what a part names.
    """
    placer = _Placer({kind: list(given.get(kind, ())) for kind in MARKS}, folder, where)
    hidden = [kind for kind in MARKS if given.get(kind) and not any(_shows(message["content"], kind) for message in messages)]
    if hidden:
        first = next((at for at, message in enumerate(messages) if message["role"] == "user"), 0)
        marks = "".join(MARKS[kind] * len(given[kind]) for kind in hidden)
        messages = [{**m, "content": _before(marks, m["content"])} if at == first else m for at, m in enumerate(messages)]
    found = [{**message, "content": placer.content(message["content"])} for message in messages]
    for kind, left in placer.given.items():
        if left:
            number = len(given[kind])
            raise DataError(f"{where}: the prompt shows {number - len(left)} of the row's {number} {kind}s; write {MARKS[kind]} for each")
    return found, tuple(placer.sources)


def text_parts(text: str) -> list[dict[str, str]]:
    """A text as a part of a content; nothing of an empty one."""
    return [{"type": "text", "text": text}] if text else []


def in_one_text(content: Any, tokens: Mapping[str, str]) -> str:
    """A content as one text, with the token of its kind for each image and video."""
    return content if isinstance(content, str) else "".join(part.get("text", tokens.get(part["type"], "")) for part in content)


class _Placer:
    def __init__(self, given: dict[str, list[Any]], folder: Path, where: str) -> None:
        self.given, self.folder, self.where = given, folder, where
        self.numbers = {kind: len(sources) for kind, sources in given.items()}
        marks = [re.escape(MARKS[kind]) for kind, number in self.numbers.items() if number]
        self.marks = re.compile(f"({'|'.join(marks)})") if marks else None
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
            kind, source = part["kind"], part["source"]
            read = image_source if kind == "image" else video_source
            where = f"{self.where}: {'an image' if kind == 'image' else 'a video'} of a message"
            self.sources.append(self._next(kind) if source is None else read(source, folder=self.folder, where=where))
            return [{"type": kind}]
        if self.marks is None or not isinstance(part, str):
            return [part]
        return [new for piece in self.marks.split(part) if piece for new in self._piece(piece)]

    def _piece(self, piece: str) -> list[Any]:
        kind = next((kind for kind, mark in MARKS.items() if piece == mark and self.numbers[kind]), None)
        if kind is None:
            return [piece]
        self.sources.append(self._next(kind))
        return [{"type": kind}]

    def _next(self, kind: str) -> Any:
        if not self.given[kind]:
            number = self.numbers[kind]
            raise DataError(f"{self.where}: the prompt shows more {kind}s than the {number} that the row has; bring one for each place")
        return self.given[kind].pop(0)


def _shows(content: Any, kind: str) -> bool:
    parts = content if isinstance(content, list) else [content]
    return any(part["kind"] == kind if isinstance(part, dict) else MARKS[kind] in (part or "") for part in parts)


def _before(marks: str, content: Any) -> Any:
    return [marks, *content] if isinstance(content, list) else marks + (content or "")


def _decoded(uri: str, *, where: str) -> bytes:
    head, comma, body = uri.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not begin with 'data:...;base64,'")
        return base64.b64decode("".join(body.split()), validate=True)  # encoders break lines
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} holds {uri!r:.40}, a data URI that cannot be read: {error}") from None


def _file(text: str, *, folder: Path, where: str) -> str:
    if "://" in text and not text.startswith("file://"):
        raise DataError(f"{where} names {text!r:.80}, an address on the network; a run reads files only: download it beside the data")
    try:
        path = (folder / Path(text.removeprefix("file://")).expanduser()).resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a null in it, an unknown home
        hint = "; base64 begins with 'data:image/png;base64,'" if len(text) > LONGEST_PATH else ""
        raise DataError(f"{where} names {text!r:.80}, which is no path: {str(error)[:80]!r}{hint}") from None
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{where} names {text!r:.80}, outside of {str(folder)!r}; set images_folder to a folder that holds it")
    if not there:
        raise DataError(f"{where} names {text!r:.80}, and there is no file {str(path)!r}")
    return str(path)
