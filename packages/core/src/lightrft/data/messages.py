"""Chat messages of a row as templates take them: text parts joined, null contents, tool calls with their arguments as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightrft.errors import DataError

Message = dict[str, Any]
KINDS = {**dict.fromkeys(("image", "image_url", "input_image"), "image"), **dict.fromkeys(("video", "video_url", "input_video"), "video")}
"""The types of parts that show something, and what that is."""

SOURCES = (*KINDS, "path", "url", "bytes")


def chat_messages(value: Any, *, where: str, column: str, images: bool = False) -> list[Message]:
    """Messages in the form that chat templates are written for: `content` a text, or None where there are `tool_calls`.

    A content of text parts is their texts, joined as processors join them; an object of lists (`datasets` keeps lists of structs so) is a
    list of objects. With `images` a content that has parts for images or videos is a list of texts and of objects `{kind: image or video,
    source: ...}` (None where the part names none). Raises DataError, with the place of the row, for anything else.
    """
    messages = _unfolded(value) if isinstance(value, Mapping) else value
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: column {column!r} holds {value!r:.60}, expected text, a list of chat messages or a list of token ids")
    return [_message(one, f"{where}: column {column!r}, message {number}", images=images) for number, one in enumerate(messages)]


def _unfolded(value: Mapping[str, Any]) -> Any:
    columns = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    if not {"role", "content"} <= columns.keys() or len({len(inner) for inner in columns.values()}) != 1:
        return value
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return [{key: cell for key, cell in row.items() if cell is not None} for row in rows]


def _message(value: Any, where: str, *, images: bool) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise DataError(f"{where} is {value!r:.60}, expected an object with 'role' and 'content'")
    message = {str(key): inner for key, inner in value.items() if inner is not None}
    if "tool_calls" in message:
        message["tool_calls"] = [_tool_call(call, where) for call in _list(message["tool_calls"], where)]
        if not message["tool_calls"]:
            del message["tool_calls"]
    content = message.get("content")
    if content is None and "tool_calls" not in message:
        raise DataError(f"{where} of role {value['role']!r} has no content (missing or null); write a text, or remove the message")
    message["content"] = _parts(content, where, images=images) if isinstance(content, (list, tuple)) else content
    if not isinstance(message["content"], str | list | None):
        raise DataError(f"{where} has the content {content!r:.60}, expected text or a list of text parts")
    return message


def _parts(parts: Any, where: str, *, images: bool) -> Any:
    """The texts of the parts, joined; with images among them, a list. Raises DataError for a part of another kind."""
    found: list[Any] = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if images and kind in KINDS:
            source = next((part[key] for key in SOURCES if part.get(key) is not None), None)
            found.append({"kind": KINDS[kind], "source": source})
            continue
        if kind not in ("text", "input_text") or not isinstance(text, str):
            more = ", {type: image, image: ...}" if images else ""
            raise DataError(f"{where} has a part of type {kind!r}, {part!r:.60}; parts are {{type: text, text: ...}}{more}")
        found.append(text)
    return "".join(found) if all(isinstance(one, str) for one in found) else found


def _tool_call(call: Any, where: str) -> Any:
    """Arguments that stand as JSON text, as services write them, become the object that templates print."""
    if not isinstance(call, Mapping):
        raise DataError(f"{where} has the tool call {call!r:.60}, expected an object with 'function'")
    inner = call.get("function") if isinstance(call.get("function"), Mapping) else call
    arguments = inner.get("arguments") if isinstance(inner, Mapping) else None
    parsed = _json_object(arguments) if isinstance(arguments, str) else None
    if parsed is None or not isinstance(inner, Mapping):
        return dict(call)
    changed = {**inner, "arguments": parsed}
    return changed if inner is call else {**call, "function": changed}


def tool_list(value: Any, *, where: str, column: str) -> list[Any] | None:
    """The tools of a row: a list of objects, or JSON text of one; None where there are none.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise DataError(f"{where}: column {column!r} is no JSON: {error}; give a list of tools, as objects or as JSON text") from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{where}: column {column!r} holds {value!r:.60}, expected a list of tools, each an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} has tool_calls={value!r:.60}, expected a list")
    return value


def _json_object(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
