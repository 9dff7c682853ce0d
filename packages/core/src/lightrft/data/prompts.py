"""The prompts that the model sees: rows become text by a template and tokens by the tokenizer; too long ones are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightrft.config.column_names import value_at
from lightrft.config.data_sources import POSSIBLE, prompt_sources
from lightrft.data.chat import ChatSettings, ChatTemplate
from lightrft.data.columns import absent, answers_at, names_of
from lightrft.data.images import ImageSettings, column_images, column_videos, in_one_text, placed, text_parts
from lightrft.data.messages import chat_messages, tool_list
from lightrft.data.rows import Table, copied, load_rows, load_table
from lightrft.data.tokens import Encoder
from lightrft.errors import DataError, nearest
from lightrft.observe.warning_names import Finding
from lightrft.types import Video

__all__ = ["Prompt", "PromptSet", "load_prompts", "load_rows"]

PLACEHOLDER = "{prompt}"
COLUMNS = {"images_key": ("images", "image", "img", "pictures", "picture"), "videos_key": ("videos", "video", "clips", "clip")}
"""Columns that look like one of images, or of videos, by the setting that names it."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of P tokens. `index`: its row in the file, from 0; `text`: after the template; `answer`: the label as text, of a list of
    accepted ones the first, with all of them in `answers`. `images`: paths and bytes in the order of their tokens, and of each video a
    `Video` of such; `token_ids` has one for each; `row` is without their columns. `where` names the row in errors; `source` its source,
    where there are several. `messages`: what the chat template wrote, without the system prompt of the settings; empty without a template.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    answer: str | None
    row: Mapping[str, Any]
    answers: tuple[str, ...] = ()
    images: tuple[Any, ...] = ()
    where: str = ""
    source: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()

    def own_row(self) -> dict[str, Any]:
        """A copy of `row` for code of the user's: what that changes in it is not there when the prompt comes again."""
        return {name: copied(value) for name, value in self.row.items()}


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The usable prompts in file order, source after source, and how many were longer than `prompt_max_len`.

    `findings` are faults that a person should know of, `notes` what was done to every prompt. `end_of_turn` is the token with which the
    chat template ends the assistant's turn, and its text; None without a template, or where that is no added token.
    """

    prompts: list[Prompt]
    num_too_long: int
    path: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    end_of_turn: tuple[int, str] | None = None


@dataclass(frozen=True)
class _Rendered:
    """A row's prompt on its way to tokens: its text with the spans that are no special tokens, or its own token ids."""

    text: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    token_ids: tuple[int, ...] | None = None
    images: tuple[Any, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()


def load_prompts(
    path: str,
    *,
    tokenizer: Any,
    input_key: str,
    label_key: str,
    prompt_template: str,
    apply_chat_template: bool,
    prompt_max_len: int,
    limit: int = 0,
    chat: ChatSettings | None = None,
    special_tokens_in_prompts: Literal["text", "tokens"] = "text",
    vocab_size: int | None = None,
    images: ImageSettings | None = None,
) -> PromptSet:
    """Reads, formats and tokenizes the prompts of a file, a dataset of the hub, or several with commas between them.

    The column `input_key` (a field of a struct by its dotted name) holds text, which replaces `{prompt}` in `prompt_template`, a list of
    chat messages, or a list of token ids, which are taken as they are. With `apply_chat_template` the text is the user's turn; a last
    turn of the assistant is continued. Every prompt begins with what the tokenizer begins a text with, once. Special tokens are those
    of the templates; in the words of the data they are plain text, unless `special_tokens_in_prompts` is `tokens`.

    A row's images stand in the column that `images` names, or in messages as parts `{type: image, image: ...}`. The text `<image>` stands
    for the next one of the column; without it they come first. Videos likewise, with `<video>`.

    `label_key` may be empty: no answers. `limit` takes the first rows only (before too long ones are left out), of several sources
    together; 0 takes all. `vocab_size` bounds the token ids. `tokenizer` is a Hugging Face tokenizer or behaves like one.

    Raises:
        DataError: as `load_rows`; a prompt that is empty or none of these; messages or a template that the settings do not allow; a label
            that is no answer; a token that the model has no row for; every prompt of a source longer than `prompt_max_len`.
        ConfigError: two sources of one name.
    """
    sources = prompt_sources(path)
    if not sources:
        raise DataError(f"no prompts are named; {POSSIBLE}")
    parts: list[PromptSet] = []
    left = limit
    for name, source in sources.items():
        table = load_table(source, required=[input_key], known=[label_key] if label_key else [])
        maker = _Maker(
            tokenizer, column=input_key, template=prompt_template, chat=chat or ChatSettings(), uses_chat=apply_chat_template,
            interpret=special_tokens_in_prompts == "tokens", images=images or ImageSettings(), folder=Path(table.path).parent,
        )  # fmt: skip
        rows = table.rows[:left] if limit else table.rows
        bounds = _Bounds(prompt_max_len, vocab_size)
        parts.append(_of_source(table, rows, maker, label_key=label_key, bounds=bounds, source=name if len(sources) > 1 else ""))
        left -= len(rows)
        if limit and not left:
            break
    return _joined(parts)


def _joined(parts: Sequence[PromptSet]) -> PromptSet:
    """Of several sources, for one tokenizer and one template."""
    return PromptSet(
        prompts=[prompt for part in parts for prompt in part.prompts],
        num_too_long=sum(part.num_too_long for part in parts),
        path=",".join(part.path for part in parts),
        findings=tuple(finding for part in parts for finding in part.findings),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        end_of_turn=parts[0].end_of_turn,
    )


@dataclass(frozen=True)
class _Bounds:
    prompt_max_len: int
    vocab_size: int | None


def _of_source(
    table: Table, rows: Sequence[Mapping[str, Any]], maker: _Maker, *, label_key: str, bounds: _Bounds, source: str
) -> PromptSet:
    """The prompts of the first rows of one table."""
    rendered = [maker.render(row, where=table.where(index)) for index, row in enumerate(rows)]
    tokens = iter(maker.encoder.encode([(one.text, one.spans) for one in rendered if one.token_ids is None]))
    ids = [next(tokens) if one.token_ids is None else one.token_ids for one in rendered]
    _check_ids(table, list(zip(rendered, ids, strict=True)), tokenizer=maker.tokenizer, vocab_size=bounds.vocab_size)
    _check_images(table, list(zip(rendered, ids, strict=True)), tokenizer=maker.tokenizer, settings=maker.images)
    answers = [answers_at(row, label_key, where=table.where(index)) if label_key else () for index, row in enumerate(rows)]
    prompts = [
        Prompt(
            index=index,
            text=one.text,
            token_ids=own,
            answer=label[0] if label else None,
            answers=label,
            images=one.images,
            messages=one.messages,
            source=source,
            row={name: value for name, value in row.items() if name not in (maker.images.key, maker.images.videos_key)},
            where=table.where(index),
        )
        for index, (row, one, own, label) in enumerate(zip(rows, rendered, ids, answers, strict=True))
    ]
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= bounds.prompt_max_len]
    if not kept:
        shortest = min(map(len, ids))
        raise DataError(
            f"{table.path}: all {len(rows)} prompts are longer than prompt_max_len={bounds.prompt_max_len}; the shortest has {shortest} "
            f"tokens: set --prompt_max_len {shortest} or more"
        )
    return PromptSet(
        prompts=kept,
        num_too_long=len(rows) - len(kept),
        path=table.path,
        findings=tuple(maker.findings(table, rows, rendered)),
        notes=tuple(maker.notes()),
        end_of_turn=maker.end_of_turn(),
    )


class _Maker:
    """Makes the prompt of each row, by the settings of one file."""

    def __init__(
        self, tokenizer: Any, *, column: str, template: str, chat: ChatSettings, uses_chat: bool, interpret: bool, images: ImageSettings,
        folder: Path,
    ) -> None:  # fmt: skip
        self.tokenizer, self.column, self.template, self.settings = tokenizer, column, template, chat
        self.images, self.folder = images, Path(images.folder or folder).expanduser()
        self.chat = ChatTemplate(tokenizer, chat) if uses_chat else None
        self.encoder = Encoder(tokenizer, structure=self.chat.skeleton() if self.chat else "", interpret=interpret)
        self.left_out: list[str] = []
        """Places of turns whose words the chat template left out."""

    def render(self, row: Mapping[str, Any], *, where: str) -> _Rendered:
        value = value_at(row, self.column)
        if value is None:
            raise absent(row, self.column, where=where)
        key, videos = self.images.key, self.images.videos_key
        given: dict[str, Sequence[Any]] = {
            "image": column_images(value_at(row, key) if key else None, folder=self.folder, where=where, column=key),
            "video": column_videos(value_at(row, videos) if videos else None, folder=self.folder, where=where, column=videos),
        }
        if isinstance(value, str):
            return self._of_text(value, row, given, where=where)
        if isinstance(value, list) and value and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
            return replace(self._of_ids(value, where=where), images=(*given["image"], *given["video"]))
        messages = chat_messages(value, where=where, column=self.column, images=True)
        if self.chat is None:
            raise DataError(f"{where}: column {self.column!r} holds chat messages, which need a chat template; set --apply_chat_template")
        self._no_template(where, "chat messages")
        messages, images = placed(messages, given, folder=self.folder, where=where)
        return replace(self._of_messages(messages, row, where=where), images=images)

    def end_of_turn(self) -> tuple[int, str] | None:
        """The first added token after the assistant's words."""
        if self.chat is None:
            return None
        after = self.chat.end_of_turn()
        for token in self.tokenizer([after], add_special_tokens=False)["input_ids"][0] if after else ():
            text = self.tokenizer.decode([token], skip_special_tokens=False)
            if text in self.encoder.specials:
                return int(token), str(text)
        return None

    def notes(self) -> list[str]:
        """What is done to every prompt and is not seen in its text, or easily missed there."""
        if self.chat is None:
            return []
        notes, prefix = [], self.encoder.prefix
        [ids] = self.tokenizer([self.chat.skeleton()], add_special_tokens=False)["input_ids"]
        if prefix and list(ids[: len(prefix)]) != prefix:
            text = self.tokenizer.decode(prefix, skip_special_tokens=False)
            notes.append(
                f"the chat template does not write {text!r}, with which the tokenizer begins every text: it is put before each prompt"
            )
        if self.chat.begins_thinking():
            notes.append(
                "the chat template ends prompts with an open <think>: completions, and what rewards read, begin inside it "
                "and hold </think> alone"
            )
        if self.chat.writes_date():
            notes.append(
                "the chat template writes the date into prompts (strftime_now): a run that is resumed or evaluated on another day reads "
                "others; give what it takes instead in chat_template_kwargs, such as date_string"
            )
        return notes

    def findings(self, table: Table, rows: Sequence[Mapping[str, Any]], rendered: Sequence[_Rendered]) -> list[Finding]:
        """What the rows have that the model reads otherwise than it was written, or not at all."""
        found: list[Finding] = []
        if self.chat is not None and (odd := self.chat.begins_otherwise()):
            text = f"{odd}: the model has to begin its turn itself, and rewards read that too; give the tokenizer another template"
            found.append(("assistant_turn", text))
        marked = [index for index, one in enumerate(rendered) if one.spans]
        if marked:
            first = rendered[marked[0]]
            words = first.text[slice(*first.spans[0])]
            text = (
                f"{len(marked)} of {len(rows)} prompts of {table.path} hold special tokens as text (the first: {table.where(marked[0])}, "
                f"{words!r}), which the model reads as plain characters; if they are meant as tokens (a column that was rendered before), "
                "set --special_tokens_in_prompts tokens"
            )
            found.append(("special_tokens_in_prompts", text))
        if self.left_out:
            text = (
                f"the chat template leaves out the words of {len(self.left_out)} turns of {table.path} (the first: {self.left_out[0]}): "
                "the model does not read them"
            )
            found.append(("turns_left_out", text))
        having = [index for index, row in enumerate(rows) if row.get("tools")]
        if having and self.chat is not None and not self.settings.tools_key and self.chat.reads_tools:
            text = (
                f"{len(having)} rows of {table.path} have tools (the first: {table.where(having[0])}) and the chat template prints tools, "
                "but no prompt has them; set --tools_key tools"
            )
            found.append(("tools_not_used", text))
        if (key := self.settings.tools_key) and all(value_at(row, key) is None for row in rows):
            known = nearest(key, names_of(rows))
            found.append(("tools_not_used", f"no row of {table.path} has tools in a column {key!r}, which tools_key names{known}"))
        named = (self.images.key, self.images.videos_key, self.column)
        for setting, columns in COLUMNS.items():
            names = [name for name in columns if name not in named and any(row.get(name) for row in rows)]
            if names and not any(isinstance(image, Video) == (setting == "videos_key") for one in rendered for image in one.images):
                text = (
                    f"the rows of {table.path} have a column {names[0]!r}, which no setting names: no prompt has them; "
                    f"set --{setting} {names[0]}, or take it out"
                )
                found.append(("images_not_read", text))
        return found

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _of_text(self, value: str, row: Mapping[str, Any], given: Mapping[str, Sequence[Any]], *, where: str) -> _Rendered:
        if not value:
            raise DataError(f"{where}: column {self.column!r} is an empty prompt; remove the row")
        [turn], images = placed([{"role": "user", "content": value}], given, folder=self.folder, where=where)

        def around(content: Any) -> Any:
            # Not str.format: prompts and templates hold braces of their own.
            if isinstance(content, str):
                return self.template.replace(PLACEHOLDER, content)
            before, _, after = self.template.partition(PLACEHOLDER)
            return [*text_parts(before), *content, *text_parts(after)]

        if self.chat is None:
            tokens = {"image": self.images.token, "video": self.images.video_token}
            made = self.encoder.rendered(turn["content"], lambda content: in_one_text(around(content), tokens), where=where)
            return _Rendered(*made, images=images)
        return replace(self._of_messages([turn], row, where=where, around=around), images=images)

    def _of_messages(self, messages: list[Any], row: Mapping[str, Any], *, where: str, around: Any = None) -> _Rendered:
        assert self.chat is not None
        chat, key = self.chat, self.settings.tools_key
        tools = tool_list(value_at(row, key), where=where, column=key) if key else list(self.settings.tools) or None

        def turns_of(given: Any) -> list[Any]:
            return [{**turn, "content": around(turn["content"])} for turn in given] if around else given

        def written(data: Any) -> str:
            return chat.render(chat.with_system(turns_of(data["messages"])), tools=data["tools"], where=where)

        text, spans = self.encoder.rendered({"messages": messages, "tools": tools}, written, where=where)
        unwritten = chat.unwritten(messages)
        for place, turn in enumerate(messages):
            words = turn["content"].strip() if isinstance(turn["content"], str) else ""
            escaped = json.dumps(words, ensure_ascii=False)[1:-1]  # some templates write a turn as JSON
            missing = words not in text and escaped not in text
            if words and (place in unwritten or (turn["role"] in ("system", "developer", "user") and missing)):
                self.left_out.append(f"{where}, role {turn['role']!r}")
        return _Rendered(text, spans, messages=tuple(turns_of(messages)))

    def _of_ids(self, value: list[int], *, where: str) -> _Rendered:
        self._no_template(where, "token ids")
        if self.chat is not None:
            raise DataError(f"{where}: column {self.column!r} holds token ids, to which apply_chat_template does not apply; leave it out")
        if wrong := [token for token in value if not 0 <= token < 2**31]:
            raise DataError(f"{where}: column {self.column!r} holds {wrong[0]}, which is no token id")
        return _Rendered(
            str(self.tokenizer.decode(value, skip_special_tokens=False)) if hasattr(self.tokenizer, "decode") else "", [], tuple(value)
        )

    def _no_template(self, where: str, what: str) -> None:
        if self.template != PLACEHOLDER:
            raise DataError(
                f"{where}: column {self.column!r} holds {what}, to which prompt_template={self.template!r} does not apply; leave it out"
            )


def _check_images(table: Table, prompts: Sequence[tuple[_Rendered, tuple[int, ...]]], *, tokenizer: Any, settings: ImageSettings) -> None:
    """Raises DataError for images or videos that the model does not read, and for a prompt without one token for each of them."""
    kinds = [("image", settings.token, settings.unread), ("video", settings.video_token, settings.videos_unread)]
    tokens = {kind: int(tokenizer.convert_tokens_to_ids(token)) if token else None for kind, token, _ in kinds}
    for index, (made, ids) in enumerate(prompts):
        videos = sum(isinstance(one, Video) for one in made.images)
        for (kind, token, unread), shown in zip(kinds, (len(made.images) - videos, videos), strict=True):
            if shown and not token:
                raise DataError(f"{table.where(index)}: the prompt has {kind}s ({shown}), and {unread}")
            number = sum(one == tokens[kind] for one in ids)
            if number != shown:
                raise DataError(
                    f"{table.where(index)}: the prompt has {number} {kind} tokens ({token}) for {shown} {kind}s; "
                    f"bring as many {kind}s, or a chat template that writes one for each"
                )


def _check_ids(table: Table, prompts: Sequence[tuple[_Rendered, tuple[int, ...]]], *, tokenizer: Any, vocab_size: int | None) -> None:
    """Raises DataError for a prompt without tokens, or with one, even as plain text, that the model has no row for."""
    for index, (shown, own) in enumerate(prompts):
        if not own:
            raise DataError(f"{table.where(index)}: the prompt {shown.text!r:.60} has no tokens; remove the row")
        if vocab_size is None:
            continue
        words = {shown.text[a:b] for a, b in shown.spans}
        token = max([*own, *(int(tokenizer.convert_tokens_to_ids(word)) for word in words)])
        if token >= vocab_size:
            text = f" ({tokenizer.decode([token], skip_special_tokens=False)!r})" if token < len(tokenizer) else ""
            raise DataError(
                f"{table.where(index)}: the prompt has token {token}{text}, and the model's embedding has {vocab_size} rows; "
                "take it out of the data, or give a model whose embedding was resized to its tokenizer"
            )
