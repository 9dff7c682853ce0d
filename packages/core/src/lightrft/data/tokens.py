"""Texts as token ids: one beginning-of-sequence, none missing and none twice; special tokens of the template, never of the data's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightrft.errors import DataError

PRIVATE = (range(0xE000, 0xF8FF, 2), range(0xF0000, 0xFFFFD, 2))
"""Characters for private use: a pair that the text does not hold stands around the number of a special token's text while a template is
rendered.
"""


class Encoder:
    """A tokenizer that reads the recipe's words (template, system prompt) with special tokens, and the data's words as plain text.

    `structure` is text that the chat template writes: added tokens in it count as special, whether or not they are flagged so. With
    `interpret` the data's words are read with special tokens too, for columns that were rendered before.
    """

    def __init__(self, tokenizer: Any, *, structure: str = "", interpret: bool = False) -> None:
        self._tokenizer = tokenizer
        self._interpret = interpret
        self.specials = _specials(tokenizer, structure)
        self._pattern = re.compile("|".join(map(re.escape, sorted(self.specials, key=len, reverse=True)))) if self.specials else None
        self.prefix = _prefix(tokenizer)

    def found_in(self, value: Any) -> list[str]:
        """The special tokens whose text stands in a value of the data, at any depth."""
        if isinstance(value, str):
            return self._pattern.findall(value) if self._pattern is not None else []
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        return [token for one in inner for token in self.found_in(one)]

    def rendered(self, value: Any, render: Callable[[Any], str], *, where: str) -> tuple[str, list[tuple[int, int]]]:
        """The text that `render` makes of a value of the data, and the spans in it of special tokens that are the data's own words.

        Raises:
            DataError: the template does something else with such words than to print them.
        """
        text = render(value)
        if self._interpret or not self.found_in(value):
            return text, []
        masked: list[str] = []
        marks = next((chr(at), chr(at + 1)) for codes in PRIVATE for at in codes if chr(at) not in text and chr(at + 1) not in text)
        pieces = re.split(f"{marks[0]}(\\d+){marks[1]}", render(self._masked(value, masked, marks)))
        rebuilt, spans = "", []
        for at, piece in enumerate(pieces):
            word = masked[int(piece)] if at % 2 else piece
            if at % 2:
                spans.append((len(rebuilt), len(rebuilt) + len(word)))
            rebuilt += word
        if rebuilt != text:
            raise DataError(
                f"{where}: the prompt holds the special token {masked[0]!r} as text, of which the chat template makes something else; "
                "take it out, or set special_tokens_in_prompts to tokens"
            )
        return text, spans

    def encode(self, texts: Sequence[tuple[str, list[tuple[int, int]]]]) -> list[tuple[int, ...]]:
        """Token ids of each text, begun as the tokenizer begins a text, and not closed by it."""
        plain = iter(self._ids([text for text, spans in texts if not spans]))
        return [self._begun(self._around(text, spans) if spans else next(plain)) for text, spans in texts]

    def encode_more(self, text: str, spans: list[tuple[int, int]]) -> list[int]:
        """Token ids of a text that goes on where another one ended: begun with nothing."""
        return self._around(text, spans) if spans else [i for ids in self._ids([text] if text else []) for i in ids]

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _masked(self, value: Any, masked: list[str], marks: tuple[str, str]) -> Any:
        def number(match: re.Match[str]) -> str:
            masked.append(match[0])
            return f"{marks[0]}{len(masked) - 1}{marks[1]}"

        if isinstance(value, str):
            return self._pattern.sub(number, value) if self._pattern is not None else value
        if isinstance(value, Mapping):
            return {key: self._masked(inner, masked, marks) for key, inner in value.items()}
        return [self._masked(inner, masked, marks) for inner in value] if isinstance(value, (list, tuple)) else value

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [list(map(int, ids)) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def _around(self, text: str, spans: list[tuple[int, int]]) -> list[int]:
        """The tokens of the text, where those that lie in a span are the span's characters."""
        if not getattr(self._tokenizer, "is_fast", False):  # which has no offsets
            edges = [0, *(edge for span in spans for edge in span), len(text)]
            pieces = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
            return [i for at, piece in enumerate(pieces) if piece for i in (self._as_words(piece) if at % 2 else self._ids([piece])[0])]
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            inside = next(((a, b) for a, b in spans if start < b and a < end), None)
            if inside is None or self._text([token]) not in self.specials:
                ids.append(int(token))
            else:
                ids += [*self._as_words(text[start : inside[0]]), *self._as_words(text[inside[0] : inside[1]])]
        return ids

    def _as_words(self, word: str) -> list[int]:
        """The characters of a special token's text as ordinary tokens."""
        if not word:
            return []
        for anchor in (word[0], ""):  # behind another word, for some tokenizers put a space before the first one of a text
            before = self._ids([anchor])[0] if anchor else []
            [found] = self._tokenizer([anchor + word], add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = [int(i) for i in found[len(before) :]]
            if list(found[: len(before)]) == before and not self._is_special(ids) and self._text(ids) == word:
                return ids
        return [i for part in (word[0], word[1:]) for i in self._ids([part])[0]]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _is_special(self, ids: Collection[int]) -> bool:
        return any(self._text([i]) in self.specials for i in ids)

    def _begun(self, ids: list[int]) -> tuple[int, ...]:
        """With the prefix of the tokenizer once, whoever wrote it; a template's own beginning-of-sequence is not doubled either."""
        bos = getattr(self._tokenizer, "bos_token_id", None)
        start = self.prefix or ([bos] if bos is not None else [])
        while start and ids[: 2 * len(start)] == 2 * start:
            ids = ids[len(start) :]
        held = next((n for n in range(len(self.prefix), 0, -1) if ids[:n] == self.prefix[:n]), 0)
        return (*self.prefix, *ids[held:])


def _specials(tokenizer: Any, structure: str) -> frozenset[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token.content for token in added.values() if token.special or token.content in structure}
    return frozenset({*found, *getattr(tokenizer, "all_special_tokens", ())} - {""})


def _prefix(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text (mostly none, or its beginning-of-sequence)."""
    try:
        [plain], [full] = (tokenizer(["a"], add_special_tokens=special)["input_ids"] for special in (False, True))
    except Exception:  # a vocabulary of few characters, where what is unknown is an error of the library's base class
        [full] = tokenizer([""], add_special_tokens=True)["input_ids"]
        plain = full[len(full) - (full[-1:] == [tokenizer.eos_token_id]) :]
    for at in range(len(full) - len(plain) + 1):
        if list(full[at : at + len(plain)]) == list(plain) and (plain or at == len(full)):
            return [int(i) for i in full[:at]]
    return []
