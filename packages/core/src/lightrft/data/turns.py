"""What stands between two turns of a conversation, as tokens: the end of the policy's turn, the answer to it, the begin of the next one.

Nothing that is trained passes through here as text: these tokens are appended to what was sampled. Where a template writes earlier turns
anew, the next turn has a context of its own (`again`), in which they are read, and not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightrft.data.chat import PROBE_CALL, PROBE_RESULT, USER, ChatSettings, ChatTemplate
from lightrft.data.messages import chat_messages
from lightrft.data.tokens import Encoder
from lightrft.data.tool_styles import STYLES, ToolStyle, style_of
from lightrft.errors import DataError
from lightrft.rollout.environment import ToolCall

WHERE = "the environment"

Exchange = tuple[Sequence[int], Sequence[Mapping[str, Any]]]
"""The tokens that the policy sampled in one turn, and the messages that followed."""


class TurnWriter:
    """Writes what follows a turn of the policy, and reads its calls. `chat` None: without a chat template, of text alone. `split`: a
    template may write earlier turns anew.

    Raises:
        DataError: without `split`, the template writes earlier turns in another way once another one follows (thoughts that it drops, a
            system prompt that moves to the last turn). It does not tell where they end; the tokenizer loses a part of what it writes;
            there are tools, and it has no place for what they answer, or writes calls in a format that is not read.
    """

    def __init__(self, tokenizer: Any, *, chat: ChatSettings | None, split: bool = False) -> None:
        self._tokenizer, self._split = tokenizer, split
        self._template = ChatTemplate(tokenizer, chat) if chat is not None else None
        self._tools = chat.tools if chat is not None else ()
        self._rewrites: dict[str, bool] = {}
        self._encoder = Encoder(tokenizer, structure=self._template.skeleton() if self._template else "")
        if self._template is not None:
            self._check(self._template, "tool" if self._tools else "user")
        self._style = _style(self._template) if self._template is not None and self._tools else None

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The prompt of a conversation that an environment begins. Raises DataError as `after`."""
        template, turns = self._of_chat(messages)
        turns, tools = template.with_system(turns), self._tools or None
        text, spans = self._encoder.rendered(turns, lambda given: template.render(given, tools=tools, where=WHERE), where=WHERE)
        return self._encoder.encode([(text, spans)])[0]

    def after(self, sampled: Sequence[int], messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens that follow the `sampled` ones of a turn: of its end those that were not sampled, the messages, the next turn's begin.

        Special tokens in the messages' words are plain characters.

        Raises:
            DataError: no template; messages that are none; a role or an order that the template does not write.
        """
        template, turns = self._of_chat(messages)
        self._check(template, turns[0]["role"])
        text, spans = self._encoder.rendered(turns, lambda given: template.after_answer(given, where=WHERE), where=WHERE)
        ids = self._encoder.encode_more(text, spans)
        return ids[self._overlap(sampled, ids) :]

    def rewrites(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template writes earlier turns anew where these messages follow. Raises DataError as `after`."""
        template, turns = self._of_chat(messages)
        self._check(template, turns[0]["role"])
        return self._rewrites[turns[0]["role"]]

    def again(self, begun: Sequence[Mapping[str, Any]], exchanges: Sequence[Exchange]) -> tuple[int, ...]:
        """The prompt of the next turn as the template writes the whole conversation now: its messages, and turn by turn what the policy
        sampled and the messages that followed.

        The policy's words are read as it sampled them, special tokens too; those of all messages are plain characters. Raises as `after`.
        """
        followed = [self._of_chat(messages)[1] for _, messages in exchanges]
        template, turns = self._template, chat_messages(list(begun), where=WHERE, column="messages")
        assert template is not None
        words = [self._own_words(sampled) for sampled, _ in exchanges]
        if turns[-1]["role"] == "assistant":
            words[0] = (turns.pop()["content"] or "") + words[0]

        def written(given: Any) -> str:
            first, *others = given
            told = [one for said, after in zip(words, others, strict=True) for one in ({"role": "assistant", "content": said}, *after)]
            return template.render(template.with_system([*first, *told]), tools=self._tools or None, where=WHERE)

        return self._encoder.encode([self._encoder.rendered([turns, *followed], written, where=WHERE)])[0]

    def words(self, text: str) -> list[int]:
        """The tokens of a text, nothing around it; special tokens in it are plain characters."""
        return self._encoder.encode_more(*self._encoder.rendered(text, str, where=WHERE))

    def calls(self, text: str, raw_text: str) -> tuple[ToolCall, ...]:
        """The calls of tools in a turn, given without and with special tokens; none where the settings have no tools."""
        return self._style.calls(text, raw_text, tools=self._tools) if self._style is not None else ()

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _check(self, template: ChatTemplate, role: str) -> None:
        """Whether turns of the policy stay as they are, and are ended, where a message of this role follows. Looked at once a role."""
        if role in self._rewrites:
            return
        message = PROBE_RESULT if role == "tool" else {"role": role, "content": USER}
        glue = template.after_answer([message], where=WHERE)
        problem = template.rewritten_turns(message)
        if problem and not self._split:
            raise DataError(f"the tokenizer's chat template {problem}; {REMEDY}, or set rewritten_turns to split")
        if USER not in glue:
            raise DataError(f"the tokenizer's chat template leaves out the words of a message of role {role!r}; give it one that has them")
        if (read := self._decoded(self._encoder.encode_more(glue, []))) != glue:
            raise DataError(f"the tokenizer reads {glue!r}, which its chat template writes between two turns, as {read!r}; {REMEDY}")
        self._rewrites[role] = bool(problem)

    def _of_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[ChatTemplate, list[Any]]:
        if self._template is None:
            raise DataError(f"{WHERE} gave chat messages, which need a chat template; set --apply_chat_template, or give text")
        turns = chat_messages(list(messages), where=WHERE, column="messages")
        if turns[-1]["role"] == "assistant":
            raise DataError(f"{WHERE} gave messages that end with the assistant's, whose turn is the policy's; leave it out")
        return self._template, turns

    def _overlap(self, sampled: Sequence[int], ids: Sequence[int]) -> int:
        """How many of the first `ids`, the end of a turn, were sampled: none where it was cut off."""
        end = self._end()
        for number in range(min(len(end), len(sampled), len(ids)), 0, -1):
            if list(sampled[-number:]) == list(ids[:number]) == end[:number]:
                return number
        return 0

    def _end(self) -> list[int]:
        assert self._template is not None
        return self._encoder.encode_more(self._template.end_of_turn(), [])

    def _own_words(self, sampled: Sequence[int]) -> str:
        """What the policy said, without the end of its turn."""
        return self._decoded(sampled[: len(sampled) - self._overlap(sampled, self._end())])

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _style(template: ChatTemplate) -> ToolStyle:
    written = template.written_call()
    call = ToolCall(name=PROBE_CALL["function"]["name"], arguments=PROBE_CALL["function"]["arguments"])
    if style := style_of(written, call):
        return style
    found = f"writes a call of one as {written!r:.160}" if written else "does not write calls of them"
    raise DataError(
        f"the environment has tools, and the tokenizer's chat template {found}; calls are read as "
        + ", or ".join(style.form for style in STYLES)
    )


REMEDY = (
    "turns of an episode are appended, token by token, to what was sampled; give the tokenizer a chat template that keeps earlier turns, "
    "or leave apply_chat_template out and let the environment answer with text"
)
