r"""Where a solution states its final answer: after `####`, in a box, in an answer tag, in "the answer is", else at its very end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightrft.rewards.arithmetic import evaluate
from lightrft.rewards.plain_text import plain
from lightrft.rewards.quantity import DOUBT, MULTIPLE_BEFORE, quantity

MARK = "####"
TAIL_CHARS = 4000
"""Only the end of a text is searched: the result is there, and a text of any length costs the same."""
BARE_CHARS = 200

_UNSEEN = re.compile(r"<<[^<>\n]{0,200}>>|<\|[\w ]{1,40}\|>|</?s>|<(?:eos|bos|pad)>")
"""GSM8K's calculator marks, and special tokens that were decoded to text."""
_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*(?:\n\s*)?([^\n]*)")
_HEADING = re.compile(
    r"\W*(?:step|part|solution|calculat\w*|explanation|reasoning|conclusion|summary|verification|check|(?:final )?answer|result|problem"
    r"|question|given|finding|find|compute|total|\d+[.)]\s+[A-Z][a-z])\b[^=]*$",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\W*(?:step \d|explanation|reasoning|verification|justification|note)\b", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|(-?\d[\d,.]*))")
_BETWEEN_BOXES = re.compile(r"[\s,;$.]*(?:\\text\{)?[\s,]*(?:and|or|,|;)[\s,]*\}?[\s$,]*", re.IGNORECASE)
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?<![A-Za-z])(?:(?P<not>wrong|incorrect|false|initial|first|previous|old|earlier|their|his|her|partial|intermediate|possible|not the"
    r"|isn't the)\s+)?(?:final\s+|correct\s+|right\s+)?(?:answers?)(?:\s+to\s+[^.:\n]{1,80}?)?[\"'*_]*"
    r"\s*(?:(?:is|are|would be|will be|should be|must be|equals?|comes (?:out )?to|turns out to be|=)(?![\w'])(?:\s+(?:then"
    r"|therefore|thus|simply|just|actually|indeed|now|still|also|as follows))*\s*:?|:|：|->|→)[\"*_]*|答案(?:是|为)?\s*[：:]?",
    re.IGNORECASE,
)
_END_OF_SENTENCE = re.compile(r"[.!?](?=[\s*_\"')}\]]|\$|\\[)\]]|\Z)|。|\n")
_NEXT_QUESTION = re.compile(r"^[ \t>*#]*(?:Question|Problem|Exercise|Q)\s*\d*\s*[:：]", re.IGNORECASE | re.MULTILINE)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|correction|oops|sorry|scratch that|hold on|made an? (?:mistake|error)|should (?:instead )?be"
    r"|let me (?:re[\w-]*|correct|fix|try again|start over)|(?:that|this|it|which|answer|above|i)(?: is|'s| was|'m| am)(?: \w+)?"
    r" (?:not right|not correct|wrong|incorrect|mistaken|a mistake))\b",
    re.IGNORECASE,
)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_PIECE = rf"(?:[-+]\s?)?\(?-?(?:\d+ \d+/\d+|{_NUMBER}|\.\d+)\)?%?"
_CHUNK = re.compile(rf"(?<![\w.])(?:{_PIECE})(?:\s*[-+*/^=≈:]\s*{_PIECE})*(?![\d])", re.ASCII)
_ASIDE = re.compile(r"(?<=[\w%]) \((?=[^()]*[A-Za-z])[^()]*\)")
_ALTERNATIVES = re.compile(r"\d\D{0,40}\bor\b\D{0,40}\d|\beither\b|\bbetween\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Declared:
    start: int
    end: int
    content: str


def final_answer(text: str) -> str | None:
    """The part of a text that states its result, or None. The last declaration counts, unless the text takes it back afterwards.

    Only where there is none, the text itself is the answer, if it is one bare expression, else the last number of its last sentence
    that holds one. What a model thought (`<think>`) and a next question that it makes up do not count.
    """
    text = _spoken(text)
    found = _declarations(text)
    if not found:
        return _undeclared(text)
    if following := _NEXT_QUESTION.search(text, found[0].end):
        text = text[: following.start()]
        found = [one for one in found if one.start < following.start()]
    last = max(found, key=lambda one: one.start)
    rest = text[last.end :]
    if _TAKEN_BACK.search(rest):
        return _last_number(rest)
    return last.content or None


def _spoken(text: str) -> str:
    """The end of it, without thoughts and what is no text."""
    closed, opened = text.rfind("</think>"), text.rfind("<think>")
    if opened > closed:
        return ""
    if closed >= 0:
        text = text[closed + len("</think>") :]
    return _UNSEEN.sub("", text.strip()[-TAIL_CHARS:]).strip()


def _declarations(text: str) -> list[_Declared]:
    boxes = _boxes(text)
    found = [*boxes, *(_Declared(m.start(1), m.end(), m[1].strip()) for m in _TAG.finditer(text))]
    for match in _MARK.finditer(text):
        content = match[1].strip()
        if _COMMENT.match(content) or (_HEADING.match(content) and quantity(content) is None):
            continue
        found.append(_Declared(match.start(1), match.end(), _without_dress(content)))
    for match in _SENTENCE.finditer(text):
        inside = any(box.start <= match.start() < box.end for box in boxes)
        if not match["not"] and not inside and (one := _sentence(text, match.end())) is not None:
            found.append(one)
    return found


def _sentence(text: str, at: int) -> _Declared | None:
    """What follows "the answer is", up to the end of the sentence or line."""
    while at < len(text) and (text[at].isspace() or text[at] in "*_`" or text.startswith(("$$", "\\["), at)):
        at += 2 if text.startswith(("$$", "\\["), at) else 1
    ending = _END_OF_SENTENCE.search(text, at)
    end = ending.start() if ending else len(text)
    content = _without_dress(text[at:end])
    return _Declared(at, end, content) if content else None


def _boxes(text: str) -> list[_Declared]:
    """Complete boxes; those that stand side by side, with a comma or a word between them, are one answer of several parts."""
    found: list[_Declared] = []
    closed = _brackets(text)
    for match in _BOX.finditer(text):
        if found and match.start() < found[-1].end:
            continue  # a box in a box
        end = match.end() if match[2] else closed.get(match.end())
        if end is None:
            continue
        content = match[2] or text[match.end() : end - 1].strip()
        if found and _BETWEEN_BOXES.fullmatch(text[found[-1].end : match.start()][:50]):
            found[-1] = _Declared(found[-1].start, end, f"{found[-1].content}, {content}")
        else:
            found.append(_Declared(match.start(), end, content))
    return found


def _brackets(text: str) -> dict[int, int]:
    """For the place after each `{` the place after the `}` that closes it."""
    opened: list[int] = []
    closed: dict[int, int] = {}
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.end())
        elif match[0] == "}" and opened:
            closed[opened.pop()] = match.end()
    return closed


def _without_dress(content: str) -> str:
    return content.strip().strip("$*_` ").removeprefix("\\(").removesuffix("\\)").strip().rstrip(".!").strip("$*_` ")


def _undeclared(text: str) -> str | None:
    if len(text) <= BARE_CHARS and _is_bare(text):
        return _without_dress(text) or None
    return _last_number(text)


def _is_bare(text: str) -> bool:
    """Whether the text is one expression and no sentence: one line in which no word stands by itself."""
    tokens = text.split()
    if len(text.strip().splitlines()) != 1 or text.rstrip().endswith("?"):
        return False
    return len(tokens) == 1 or not any(len(word) > 1 and word.isalpha() for word in (token.strip(".,;:!?*_$") for token in tokens))


def _last_number(text: str) -> str | None:
    """The number with which the last sentence ends that holds one; None where the sentence doubts, asks, or leaves a calculation open."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|。|\n+", text) if part.strip()]
    for index in range(len(sentences) - 1, -1, -1):
        if re.search(r"\d", sentences[index]):
            doubted = any(DOUBT.search(part) for part in sentences[index + 1 :])
            return None if doubted else _ending_number(sentences[index])
    return None


def _ending_number(sentence: str) -> str | None:
    if sentence.rstrip(" *_\"')").endswith("?") or _ALTERNATIVES.search(sentence) or DOUBT.search(sentence):
        return None
    flat = plain(sentence[-1000:]).rstrip("!")
    if re.search(r"\d", aside := _ASIDE.sub(" ", flat)):
        flat = aside
    chunks = list(_CHUNK.finditer(flat))
    if not chunks:
        return None
    last = chunks[-1]
    before = flat[: last.start()].rstrip()
    if re.search(
        r"[\d<>≤≥±^\\=(]$|\b(?:than|least|most|up to|step|question|chapter|page|number)$", before, re.IGNORECASE
    ) and not before.endswith("="):
        return None
    if MULTIPLE_BEFORE.search(before):
        return None
    piece = re.split(r"[=≈]", last[0])[-1].strip()
    if not re.fullmatch(rf"{_PIECE}(?:\s*/\s*\d+)?", piece, re.ASCII) or evaluate(piece.strip("%()")) is None:
        return None
    if re.search(r"\d", flat[last.end() :]):
        return None
    stated = piece + flat[last.end() :]
    return piece if quantity(stated) == quantity(piece) else (stated if quantity(stated) else None)
