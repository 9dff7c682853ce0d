"""Whether the completion ends with the right result, as mathematics rather than as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightrft.rewards.equality import equal_expressions, require_math_verify
from lightrft.rewards.exact_match import required_answers
from lightrft.rewards.final_answer import MARK, final_answer
from lightrft.rewards.plain_text import plain
from lightrft.rewards.quantity import NO_NUMBER, quantity, same_quantity
from lightrft.types import Sample

ANSWER_CHARS = 200
"""Nobody's final answer is longer; parsing a longer one takes seconds."""

_OPERATOR = re.compile(r"[\\^/*+(){}!-]")
_COMMAND = re.compile(r"\\(?:[dtc]?frac|sqrt|pi|cdot|times|div|log|ln|exp|sin|cos|tan|binom|left|right|text|mathrm|[,;:!() ])")
_LIST = re.compile(r"[,;]|\b(?:or|and)\b|[<>≤≥≠±]|\\(?:pm|le|ge|neq?|in|cup|cap)\b")
_ENDLESS = re.compile(r"\^[^^+]*\^|\^\W*\d{5,}|\d{4,}\W*!|!\W*!|\)\s*!|\d{40,}|binom\D*\d{4,}")
"""Towers of powers and the like, on which a computer algebra system works for ever."""
_POWER = re.compile(r"(?<=[\w)])\s*\*\*\s*(?=[\w(-])")
_MATRIX = re.compile(r"\s*\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}\s*", re.DOTALL)
_AND = re.compile(r"\s*,?\s*(?<![a-z])and(?![a-z])\s*")
_BRACKETED = re.compile(r"([\[(])(.*)([\])])", re.DOTALL)


def math_reward(samples: Sequence[Sample]) -> list[float]:
    r"""1.0 where the completion's final answer equals the reference's, or that of one of several accepted references, else 0.0.

    `lightrft.rewards.final_answer` says where the final answer stands. Numbers (with units, signs of currency and percent, separators of
    thousands, as fractions, mixed numbers or plain arithmetic) are compared exactly here, other expressions by math-verify in one process
    that lives as long as this one. What states no single answer, or takes it back, is wrong.

    Raises:
        RewardError: math-verify is not installed.
        ValueError: a sample without a reference, or one in which there is no answer.
    """
    require_math_verify()
    rewards = [0.0] * len(samples)
    unsettled: list[tuple[int, tuple[str, str]]] = []
    for index, sample in enumerate(samples):
        references = [_reference(answer, index) for answer in required_answers(sample, index)]
        found = final_answer(sample.completion)
        if found is None:
            continue
        same = {reference: same_answer(reference, found) for reference in references}
        rewards[index] = float(any(same.values()))
        if not rewards[index]:
            unsettled += [(index, (reference, found)) for reference, verdict in same.items() if verdict is None]
    verdicts = equal_expressions(pair for _, pair in unsettled)
    for index, pair in unsettled:
        rewards[index] = max(rewards[index], float(verdicts[pair]))
    return rewards


def same_answer(reference: str, found: str) -> bool | None:
    """Equal or not where that is plain to see; None where it takes math-verify."""
    if len(found) > ANSWER_CHARS or len(reference) > ANSWER_CHARS:
        return reference == found
    found = _POWER.sub("^", found)
    right = quantity(reference)
    if right is not None:
        value = quantity(found)
        if value is not None:
            return same_quantity(right, value)
        return None if _is_calculation(found) else False
    rows = _rows(reference), _rows(found)
    if rows[0] or rows[1]:
        return _same_rows(*rows)
    flat = [_flat(reference), _flat(found)]
    if flat[0] == flat[1]:
        return True
    if _is_words(flat[0]) or _is_words(flat[1]) or _endless(found) or re.search(r"[<>≤≥≠±]", found + reference):
        return False
    return _same_elements(reference, found)


def _reference(given: str, index: int) -> str:
    answer = given
    if MARK in answer:
        answer = answer.rpartition(MARK)[2].strip().partition("\n")[0]
    elif len(answer) > ANSWER_CHARS or r"\boxed" in answer:
        answer = final_answer(answer) or ""
    stripped = answer.strip().replace("\\$", "$").strip("$ ").rstrip(".").strip("$ ")
    if not stripped:
        raise ValueError(f"sample {index}: the reference {given[:60]!r} holds no answer; set label_key to the column with the answers")
    return stripped


def _is_calculation(found: str) -> bool:
    """Whether there is one thing to compute in it that could give a number: digits, operators and known commands, no words, no list."""
    bare = _COMMAND.sub(" ", found)
    if not (_OPERATOR.search(found) and re.search("[0-9]", found)) or _LIST.search(bare) or NO_NUMBER.search(found) or _endless(found):
        return False
    return "=" not in bare and not re.search(r"[A-Za-z\\?]", bare)


def _endless(found: str) -> bool:
    """Whether a computer algebra system may work on it for ever, or its parser."""
    depth = deepest = 0
    for char in found:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        deepest = max(deepest, depth)
    return deepest > 20 or depth > 1 or _ENDLESS.search(found) is not None


def _flat(text: str) -> str:
    flat = plain(text).casefold()
    if not _is_words(listed := _AND.sub(",", flat)):  # 6 and 7
        flat = listed
    return re.sub(r"\s*([(),;:=+*/^<>≤≥≠±&\[\]{}-])\s*", r"\1", flat)


def _is_words(flat: str) -> bool:
    """A name or a sentence. As products of letters, which they are to a parser, anagrams would be equal."""
    return re.search(r"(?<![\\a-z])[a-z]{2,}", re.sub(r"\\[a-z]+", " ", flat)) is not None


def _rows(text: str) -> list[list[str]]:
    """The cells of a matrix or a column in round or square brackets; empty where the text is none."""
    matrix = _MATRIX.fullmatch(text)
    return [[cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\", matrix[1]) if row.strip()] if matrix else []


def _same_rows(reference: list[list[str]], found: list[list[str]]) -> bool | None:
    """Cell by cell; None where one takes math-verify."""
    if [len(row) for row in reference] != [len(row) for row in found]:
        return False
    pairs = [(a, b) for rows in zip(reference, found, strict=True) for a, b in zip(*rows, strict=True)]
    return _all(same_answer(a, b) if a and b else a == b for a, b in pairs)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    known = list(verdicts)
    return False if False in known else None if None in known else True


def _same_elements(reference: str, found: str) -> bool | None:
    """Points and intervals, element by element; None where it is no such thing or an element takes math-verify."""
    one, other = _BRACKETED.fullmatch(_flat(reference)), _BRACKETED.fullmatch(_flat(found))
    if one is None or other is None or "," not in one[2] or any(c in one[2] + other[2] for c in "([{"):
        return None
    if one[1] != other[1] or one[3] != other[3]:
        return False
    pairs = list(zip(one[2].split(","), other[2].split(","), strict=False))
    if one[2].count(",") != other[2].count(","):
        return False
    return _all(same_answer(a, b) if a and b else a == b for a, b in pairs)
