"""Which prompts does the model see? Rows become text by a template and tokens by the tokenizer; too long ones are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.data.rows import Table, load_rows, load_table
from lightrft.errors import DataError

__all__ = ["Prompt", "PromptSet", "load_prompts", "load_rows"]

PLACEHOLDER = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of P tokens. `index`: its row in the file, from 0; `text`: after the template; `answer`: the label as text, of a list of
    accepted ones the first, with all of them in `answers`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    answer: str | None
    row: Mapping[str, Any]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The usable prompts in file order, and how many were longer than `prompt_max_len`."""

    prompts: list[Prompt]
    num_too_long: int
    path: str


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
) -> PromptSet:
    """Reads, formats and tokenizes the prompts of a file.

    The column `input_key` holds text, which replaces `{prompt}` in `prompt_template`, or a list of chat messages. With
    `apply_chat_template` the text is the user's turn. `label_key` may be empty: no answers. `limit` takes the first rows only
    (before too long ones are left out); 0 takes all. `tokenizer` is a Hugging Face tokenizer or behaves like one.

    Raises:
        DataError: as `load_rows`; a prompt that is empty or neither text nor messages; messages or a template that the settings do
            not allow; every prompt longer than `prompt_max_len`.
    """
    table = load_table(path, required=[key for key in (input_key, label_key) if key])
    if apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise DataError("apply_chat_template is set, but the tokenizer has no chat template; unset it and write a prompt_template instead")
    rows = table.rows[:limit] if limit else table.rows
    texts = []
    for index, row in enumerate(rows):
        text = _text_of(row[input_key], column=input_key, where=table.where(index), template=prompt_template, chat=apply_chat_template)
        texts.append(_render(text, tokenizer=tokenizer, where=table.where(index)) if apply_chat_template else str(text))
    ids = _tokenize(texts, tokenizer=tokenizer, chat=apply_chat_template)
    return _select(table, rows=rows, texts=texts, ids=ids, label_key=label_key, prompt_max_len=prompt_max_len)


def _text_of(value: Any, *, column: str, where: str, template: str, chat: bool) -> str | list[Any]:
    """The text after the template, or valid chat messages where the settings allow them."""
    if isinstance(value, str):
        if not value:
            raise DataError(f"{where}: column {column!r} is an empty prompt; remove the row")
        # Not str.format: prompts and templates hold braces of their own.
        return template.replace(PLACEHOLDER, value)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: column {column!r} holds {value!r:.60}, expected text or a list of chat messages")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: column {column!r} holds the message {message!r:.60}, expected an object with 'role' and 'content'")
    if not chat:
        raise DataError(f"{where}: column {column!r} holds chat messages, which need a chat template; set --apply_chat_template")
    if template != PLACEHOLDER:
        raise DataError(
            f"{where}: column {column!r} holds chat messages, to which prompt_template={template!r} does not apply; leave it out"
        )
    return value


def _render(text: str | list[Any], *, tokenizer: Any, where: str) -> str:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates are programs of the model's author and raise what they like
        raise DataError(f"{where}: the tokenizer's chat template fails: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _tokenize(texts: Sequence[str], *, tokenizer: Any, chat: bool) -> list[tuple[int, ...]]:
    # A chat template writes the special tokens itself: adding them again would begin the prompt with two BOS.
    found = [tuple(int(i) for i in ids) for ids in tokenizer(list(texts), add_special_tokens=not chat)["input_ids"]]
    if chat or tokenizer.eos_token_id is None:
        return found
    # Some tokenizers close every text with EOS, after which there is nothing to complete.
    closed = [
        ids[-1:] == (tokenizer.eos_token_id,) and not text.endswith(tokenizer.eos_token) for ids, text in zip(found, texts, strict=True)
    ]
    return [ids[:-1] if is_closed else ids for ids, is_closed in zip(found, closed, strict=True)]


def _select(
    table: Table, *, rows: list[dict[str, Any]], texts: list[str], ids: list[tuple[int, ...]], label_key: str, prompt_max_len: int
) -> PromptSet:
    prompts = []
    for index, (row, text, token_ids) in enumerate(zip(rows, texts, ids, strict=True)):
        if not token_ids:
            raise DataError(f"{table.where(index)}: the prompt {text!r:.60} has no tokens; remove the row")
        if len(token_ids) <= prompt_max_len:
            label = row[label_key] if label_key else None
            answer = None if label is None else str(label)
            prompts.append(Prompt(index=index, text=text, token_ids=token_ids, answer=answer, row=row))
    if not prompts:
        shortest = min(len(token_ids) for token_ids in ids)
        raise DataError(
            f"{table.path}: all {len(rows)} prompts are longer than prompt_max_len={prompt_max_len}; the shortest has {shortest} tokens: "
            f"set --prompt_max_len {shortest} or more"
        )
    return PromptSet(prompts=prompts, num_too_long=len(rows) - len(prompts), path=table.path)
