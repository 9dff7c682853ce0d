"""A sample as text for a reward model, and signs that it is written for another one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.types import Sample

MARKUP = re.compile(r"<\|[A-Za-z][\w-]{0,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜\s]{1,30}｜>|</s>")
"""What chat templates write around turns, of any model."""
UNKNOWN_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What the settings say of prompts: the column, the text around it, and whether the actor saw its own chat template."""

    input_key: str
    prompt_template: str = "{prompt}"
    chats: bool = False

    def text(self, sample: Sample, *, tokenizer: Any) -> str:
        """The conversation in the template of `tokenizer`; without one, prompt and completion as the actor saw them."""
        if not tokenizer.chat_template:
            return sample.prompt + sample.completion
        turns = [*self._turns(sample), {"role": "assistant", "content": sample.completion}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    def _turns(self, sample: Sample) -> list[Mapping[str, Any]]:
        given = sample.row.get(self.input_key)
        if isinstance(given, (list, tuple)):
            return list(given)
        text = sample.prompt if given is None else self.prompt_template.replace("{prompt}", str(given))
        return [{"role": "user", "content": text}]


def template_fault(texts: Sequence[str], *, tokenizer: Any, chats: bool) -> str:
    """What shows that these texts are not what the model was trained on, or nothing."""
    if chats and not tokenizer.chat_template:
        return "its tokenizer has no chat template, so it reads the markup of the actor's; give it its own"
    special = {str(token) for token in tokenizer.all_special_tokens} | {str(t) for t in tokenizer.get_added_vocab()}
    template = tokenizer.chat_template or ""
    for text in texts:
        foreign = next((mark for mark in MARKUP.findall(text) if mark not in special and mark not in template), None)
        if foreign is not None:
            return f"its input has {foreign!r}, which its tokenizer does not know as a token: text of another template, in {text[:60]!r}"
    if tokenizer.chat_template:
        once = len(MARKUP.findall(str(tokenizer.apply_chat_template(_EMPTY, tokenize=False))))
        for text in texts:
            # Turns that are chats already bring their own marks; two turns of plain text bring as many as an empty conversation.
            if once and len(MARKUP.findall(text)) > 3 * once:
                return f"its input has the marks of several templates in one another: the data are rendered already, in {text[:60]!r}"
    unknown = tokenizer.unk_token_id
    if unknown is not None and texts:
        ids = [token for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in row]
        fraction = sum(token == unknown for token in ids) / max(len(ids), 1)
        if fraction > UNKNOWN_FRACTION:
            return f"{fraction:.0%} of the tokens of its input are unknown to it: its tokenizer is of another language or another model"
    return ""


_EMPTY = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
