"""Conversations as the tokenizer's chat template writes them; what the template would drop or misread is found before a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightrft.data.messages import Message
from lightrft.errors import DataError, nearest

OWN = {
    "messages": "input_key",
    "conversation": "input_key",
    "tools": "tools_key",
    "add_generation_prompt": "nothing: a last turn of the assistant is continued, after any other one its turn begins",
    "continue_final_message": "nothing: a last turn of the assistant is continued, after any other one its turn begins",
    "tokenize": "nothing",
    "return_dict": "nothing",
    "return_tensors": "nothing",
}
"""What the template is given by other settings."""

USER, ANSWER, SYSTEM = "lightrft0user", "lightrft0answer", "lightrft0system"
"""Words that no template writes by itself."""

PROBE_TOOL = {
    "type": "function",
    "function": {"name": "lightrft0tool", "description": "", "parameters": {"type": "object", "properties": {}}},
}


PROBE_CALL: Message = {
    "id": "lightrft0",
    "type": "function",
    "function": {"name": "lightrft0tool", "arguments": {"lightrft0key": "lightrft0value"}},
}

PROBE_RESULT: Message = {"role": "tool", "content": USER, "name": "lightrft0tool", "tool_call_id": "lightrft0"}


@dataclass(frozen=True)
class ChatSettings:
    """`system_prompt` begins conversations that have no system turn; `kwargs` go to the template; `tools_key` names the tools' column.

    `tools`: the JSON schemas of those that every conversation has.
    """

    system_prompt: str = ""
    tools_key: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()


class ChatTemplate:
    """The chat template of a tokenizer with the settings of a run.

    Raises:
        DataError: there is none; a setting that it does not read; a template that leaves the user's text, the system prompt or tools
            of the settings out.
    """

    def __init__(self, tokenizer: Any, settings: ChatSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                "apply_chat_template is set, but the tokenizer has no chat template; unset it and write a prompt_template instead"
            )
        self._check_kwargs()
        self._unwritten: dict[tuple[str, ...], list[int]] = {}
        self._in_parts = False
        self._in_parts = self._takes_parts()
        self._check_steady()
        self._check_system_prompt()
        self._check_tools()

    @property
    def source(self) -> str:
        """The template's own text; of several by name, those that a run may use."""
        template = self._tokenizer.chat_template
        return "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template)

    @property
    def reads_tools(self) -> bool:
        """Whether the template has a word for tools."""
        return re.search(r"\btools\b", self.source) is not None

    def with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The system prompt of the settings first, where the conversation has none of its own."""
        own = bool(messages) and messages[0]["role"] in ("system", "developer")
        if not self._settings.system_prompt or own:
            return list(messages)
        return [{"role": "system", "content": self._settings.system_prompt}, *messages]

    def render(self, messages: Sequence[Message], *, tools: Sequence[Any] | None, where: str) -> str:
        """The prompt's text. A last turn of the assistant is left open, to be continued; after any other one its turn is begun.

        Raises:
            DataError: the template fails, cannot continue the last turn, or writes None for a content that is null.
        """
        last = messages[-1]
        if last["role"] == "assistant" and "tool_calls" in last:
            raise DataError(f"{where}: the conversation ends with the assistant's tool call; end with the tool's answer, or take it out")
        goes_on = last["role"] == "assistant" and bool(last["content"])
        turns = list(messages[:-1]) if last["role"] == "assistant" and not goes_on else list(messages)
        try:
            text = self._rendered(turns, tools=tools, goes_on=goes_on)
            if any(message["content"] is None for message in turns):
                filled = [{**message, "content": message["content"] or ""} for message in turns]
                plain = self._rendered(filled, tools=tools, goes_on=goes_on)
                if text.count("None") > plain.count("None"):
                    raise DataError(f"{where}: the chat template writes 'None' for the content of a tool call that is null; give it a text")
        except DataError:
            raise
        except Exception as error:  # templates are programs of the model's author and raise what they like
            reason = " ".join(str(error).split())
            null = isinstance(error, TypeError) and any(message["content"] is None for message in turns)
            hint = "; it cannot write a tool call whose content is null: give it a text, or take the row out" if null else ""
            raise DataError(f"{where}: the tokenizer's chat template fails: {type(error).__name__}: {reason:.300}{hint}") from error
        if tools and text == self._rendered(turns, tools=None, goes_on=goes_on):
            ruled = [{"role": "system", "content": SYSTEM}, *turns]
            helps = turns[0]["role"] != "system" and self._probe(ruled, tools=tools) != self._probe(ruled)
            leave = "leave tools_key out, or write them into the prompt" if self._settings.tools_key else "give the tokenizer one that does"
            remedy = "set system_prompt (it prints them in a system turn)" if helps else leave
            raise DataError(f"{where}: the chat template does not print the tools in this conversation; {remedy}")
        return text

    def skeleton(self) -> str:
        """A closed conversation without any words of a user: what the template writes around them; with tools, around theirs too."""
        turns: list[Message] = [{"role": role, "content": text} for role, text in (("user", USER), ("assistant", ANSWER), ("user", USER))]
        text = self._probe(turns, begun=False)
        return text + self.written_call() + self._probe([*turns[:2], PROBE_RESULT]) if self._settings.tools else text

    def unwritten(self, messages: Sequence[Message]) -> list[int]:
        """Places of turns, other than the assistant's, whose words the template leaves out, whatever they are; looked at once for each
        order of roles.
        """
        if any("tool_calls" in message or not isinstance(message["content"], str) for message in messages):
            return []
        roles = tuple(message["role"] for message in messages)
        if roles not in self._unwritten:
            marks = [f"{USER}{place}end" for place in range(len(roles))]
            text = self._probe([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
            self._unwritten[roles] = [at for at, mark in enumerate(marks) if text and roles[at] != "assistant" and mark not in text]
        return self._unwritten[roles]

    def end_of_turn(self) -> str:
        """What the template writes after the words of the assistant; empty where that cannot be told."""
        text = self._probe([{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}], begun=False)
        return text.rpartition(ANSWER)[2] if ANSWER in text else ""

    def begins_thinking(self) -> bool:
        """Whether the template opens `<think>` itself, at the end of every prompt."""
        turn = [{"role": "user", "content": USER}]
        begun, closed = self._probe(turn), self._probe(turn, begun=False)
        own = begun.removeprefix(closed)
        return own.count("<think>") > own.count("</think>")

    def writes_date(self) -> bool:
        """Whether prompts have the date of the day on which they are made."""
        if "strftime_now" not in self.source:
            return False
        more = dict(self._settings.kwargs) | {"strftime_now": lambda form: ANSWER}
        try:
            text = self._tokenizer.apply_chat_template([{"role": "user", "content": USER}], tokenize=False, **more)
        except Exception:  # see `_probe`
            return False
        return ANSWER in str(text)

    def begins_otherwise(self) -> str:
        """In which way prompts end otherwise than the template begins a turn of the assistant, in words; empty where they do not."""
        turn = [{"role": "user", "content": USER}]
        begun, closed = self._probe(turn), self._probe(turn, begun=False)
        whole = self._probe([*turn, {"role": "assistant", "content": ANSWER}], begun=False)
        if not begun or ANSWER not in whole:
            return ""
        behind, before = (text.partition("<think")[0].partition(USER)[2] for text in (begun, whole.partition(ANSWER)[0]))
        if before.startswith(behind):
            rest = before.removeprefix(behind).strip()
            missing = f"the chat template begins a turn of the assistant with {rest!r}, and has no generation prompt that writes it"
            return missing if rest and begun == closed else ""
        if behind.startswith(before.rstrip()):
            return ""
        return f"the chat template writes {behind!r} at the end of a prompt, and {before!r} where the assistant's words follow"

    def after_answer(self, messages: Sequence[Message], *, where: str) -> str:
        """What follows the assistant's words, where `messages` and another turn of the assistant do.

        Raises:
            DataError: the template fails for such messages, or writes something else for what stands before them.
        """
        before = self.with_system([{"role": "user", "content": USER}])
        text = self.render([*before, {"role": "assistant", "content": ANSWER}, *messages], tools=self._settings.tools or None, where=where)
        if text.count(ANSWER) != 1:
            raise DataError(f"{where}: the chat template leaves out the assistant's turn before these messages")
        return text.partition(ANSWER)[2]

    def written_call(self) -> str:
        """The assistant's turn that calls a tool, `PROBE_CALL`; empty where the template writes no calls."""
        turns = self.with_system([{"role": "user", "content": USER}])
        begun = self._probe(turns)
        for content in ("", None):  # some templates write the one, some the other
            text = self._probe([*turns, {"role": "assistant", "content": content, "tool_calls": [PROBE_CALL]}], begun=False)
            if PROBE_CALL["function"]["name"] in text:
                own = text.removeprefix(begun) if text.startswith(begun) else text.partition(USER)[2]
                return own.removesuffix(self.end_of_turn())
        return ""

    def rewritten_turns(self, follows: Message) -> str:
        """In which way the template writes a turn of the assistant, or what stands before it, otherwise once the message `follows` stands
        behind it; empty where it does not.
        """
        turns = self.with_system([{"role": "user", "content": USER}])
        tools = self._settings.tools or ([PROBE_TOOL] if self._settings.tools_key else None)
        begun = self._probe(turns, tools=tools)
        words = {
            "writes what stands before an earlier turn otherwise than before the last one": ANSWER,
            "drops the thoughts of earlier turns": f"<think>\n{SYSTEM}\n</think>\n\n{ANSWER}",
        }
        for problem, answer in words.items():
            text = self._probe([*turns, {"role": "assistant", "content": answer}, follows], tools=tools)
            if not text.startswith(begun + answer):
                return problem
        return ""

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _check_steady(self) -> None:
        turn = [{"role": "user", "content": USER}]
        if self._probe(turn) != self._probe(turn):
            raise DataError(
                "the tokenizer's chat template writes something else each time (random numbers, or the time); ranks, engines and a resumed "
                "run have to read the same prompts: take that out of the template"
            )

    def _check_tools(self) -> None:
        turns = self.with_system([{"role": "user", "content": USER}])
        if self._settings.tools and self._probe(turns, tools=self._settings.tools) in ("", self._probe(turns)):
            raise DataError(
                "the environment has tools, and the tokenizer's chat template does not print them; give the tokenizer one that does"
                + ("" if self._settings.system_prompt else " (some print them only where system_prompt is set)")
            )

    def _rendered(self, messages: list[Message], *, tools: Sequence[Any] | None, goes_on: bool = False, begun: bool = True) -> str:
        given = [self._with_parts(message) for message in messages] if self._in_parts else messages
        more: dict[str, Any] = dict(self._settings.kwargs)
        if tools is not None:
            more["tools"] = list(tools)
        if goes_on:
            more["continue_final_message"] = True
        try:
            return str(self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=begun and not goes_on, **more))
        except TypeError:
            as_text = [_with_text_arguments(message) for message in given]
            if as_text == given:
                raise  # some templates add the arguments of a call up with text: those take JSON text
            return str(self._tokenizer.apply_chat_template(as_text, tokenize=False, add_generation_prompt=begun and not goes_on, **more))

    def _with_parts(self, message: Message) -> Message:
        content = message["content"]
        return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message

    def _probe(self, messages: list[Message], *, tools: Sequence[Any] | None = None, begun: bool = True) -> str:
        """Empty where the template refuses: a row that it refuses is told by its place."""
        try:
            return self._rendered(messages, tools=tools, begun=begun)
        except Exception:  # see `render`
            return ""

    def _takes_parts(self) -> bool:
        """Whether the template sees a text only in a list of parts, as processors of images give it."""
        turn = [{"role": "user", "content": USER}]
        text = self._probe(turn)
        if USER in text:
            return False
        self._in_parts = True
        if USER in self._probe(turn):
            return True
        if text:
            raise DataError("the tokenizer's chat template leaves the user's text out; give the tokenizer another template")
        return False

    def _check_kwargs(self) -> None:
        known = sorted(set(re.findall(r"[A-Za-z_]\w+", self.source)))
        for name in self._settings.kwargs:
            if name in OWN:
                raise DataError(f"chat_template_kwargs sets {name!r}, which is given by {OWN[name]}; leave it out")
            if name not in known:
                raise DataError(
                    f"chat_template_kwargs sets {name!r}, which the chat template does not read{nearest(name, known)}; leave it out"
                )

    def _check_system_prompt(self) -> None:
        if not self._settings.system_prompt:
            return
        text = self._probe([{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}])
        if SYSTEM not in text:
            raise DataError(
                "system_prompt is set, but the tokenizer's chat template has no place for a system turn; put the text into prompt_template"
            )


def _with_text_arguments(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message

    def written(call: Any) -> Any:
        inner = call.get("function", call)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("arguments"), Mapping):
            return call
        changed = {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}
        return {**call, "function": changed} if "function" in call else changed

    return {**message, "tool_calls": [written(call) for call in calls]}
