"""The formats in which chat templates write calls of tools, and how such calls are read from a completion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.rollout.environment import ToolCall

_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class ToolStyle:
    """`form` shows a call. `read` finds the calls in a turn's text, in order.

    `marked`: calls stand between marks, which may be special tokens; else the text without special tokens is the call. `typed`: arguments
    are JSON values; else texts, whose types the tool's schema tells.
    """

    name: str
    form: str
    read: Callable[[str], list[ToolCall]]
    marked: bool = True
    typed: bool = True

    def calls(self, text: str, raw_text: str, *, tools: Sequence[Mapping[str, Any]]) -> tuple[ToolCall, ...]:
        """The calls in a turn, given without and with special tokens; those in its thoughts are none. Raises for nothing that it holds."""
        found = self.read(_spoken(raw_text if self.marked else text))
        return tuple(found if self.typed else [_typed(call, tools) for call in found])


def style_of(written: str, call: ToolCall) -> ToolStyle | None:
    """The style in which `written`, a chat template's text of an assistant's turn, holds exactly this call; None: none of them."""
    return next((style for style in STYLES if style.read(written) == [call]), None)


def _spoken(text: str) -> str:
    """What follows the thoughts."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


# ---- JSON between marks ------------------------------------------------------------------------------------------------------------------


def _hermes(text: str) -> list[ToolCall]:
    opening, closing = "<tool_call>", "</tool_call>"
    calls, at = [], text.find(opening)
    while at >= 0:
        value, end, problem = _value(text, at + len(opening))
        if not problem and not text[end:].lstrip().startswith(closing):
            problem = f"{closing} is missing behind the JSON object"
        calls.append(ToolCall(problem=problem) if problem else _call(value, "arguments"))
        if problem:  # nothing is known of where it ends but by its mark
            end = text.find(closing, at)
        at = text.find(opening, end) if end >= 0 else -1
    return calls


def _mistral(text: str) -> list[ToolCall]:
    opening = "[TOOL_CALLS]"
    if opening not in text:
        return []
    value, _, problem = _value(text, text.index(opening) + len(opening))
    if problem:
        return [ToolCall(problem=problem)]
    return [_call(one, "arguments") for one in (value if isinstance(value, list) else [value])]


def _mistral_args(text: str) -> list[ToolCall]:
    calls = []
    for piece in text.split("[TOOL_CALLS]")[1:]:
        name, mark, _ = piece.partition("[ARGS]")
        arguments, _, problem = _value(piece, len(name) + len(mark))
        problem = problem if mark else "[ARGS] is missing behind the tool's name"
        calls.append(ToolCall(problem=problem) if problem else _call({"name": name.strip(), "arguments": arguments}, "arguments"))
    return calls


def _llama(text: str) -> list[ToolCall]:
    if not re.match(r'\s*\{\s*"name"', text):  # else it is an answer
        return []
    value, _, problem = _value(text, 0)
    return [ToolCall(problem=problem) if problem else _call(value, "parameters")]


def _value(text: str, at: int) -> tuple[Any, int, str]:
    """The JSON value that begins at a place, where it ends, and what is wrong with it."""
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        return *_JSON.raw_decode(text, at), ""
    except (ValueError, RecursionError) as error:  # a model may nest as deep as it likes
        return None, at, f"no JSON: {getattr(error, 'msg', error)}"


def _call(value: Any, key: str) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolCall(problem=f"expected a JSON object with name and {key}")
    if not isinstance(value.get(key), dict):
        return ToolCall(problem=f"{key} has to be a JSON object")
    return ToolCall(name=value["name"], arguments=value[key])


# ---- elements ----------------------------------------------------------------------------------------------------------------------------

_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def _elements(text: str) -> list[ToolCall]:
    calls = []
    for piece in text.split("<tool_call>")[1:]:
        head = re.match(r"\s*<function=([^>\n]+)>(.*?)</function>\s*</tool_call>", piece, re.DOTALL)
        if head is None:
            calls.append(ToolCall(problem="expected <function=NAME>, parameters, </function> and </tool_call>"))
        else:
            calls.append(ToolCall(name=head[1].strip(), arguments={name.strip(): value for name, value in _PARAMETER.findall(head[2])}))
    return calls


def _typed(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """Texts as the JSON values that they are, but where the schema asks for a text."""
    named = [tool["function"] for tool in tools if tool["function"]["name"] == call.name]
    schema: Mapping[str, Any] = named[0]["parameters"]["properties"] if named else {}

    def value(name: str, text: str) -> Any:
        if schema.get(name, {}).get("type") == "string":
            return text
        found, end, problem = _value(text, 0)
        return text if problem or text[end:].strip() else found

    return ToolCall(name=call.name, problem=call.problem, arguments={name: value(name, text) for name, text in call.arguments.items()})


STYLES = (
    ToolStyle("hermes", '<tool_call>{"name": ..., "arguments": {...}}</tool_call>', _hermes),
    ToolStyle("elements", "<tool_call><function=NAME><parameter=NAME>...</parameter></function></tool_call>", _elements, typed=False),
    ToolStyle("mistral", '[TOOL_CALLS] [{"name": ..., "arguments": {...}}]', _mistral),
    ToolStyle("mistral_args", "[TOOL_CALLS]NAME[ARGS]{...}", _mistral_args),
    ToolStyle("llama", '{"name": ..., "parameters": {...}}', _llama, marked=False),
)
