"""Does the completion end with the right result, as mathematics rather than as text?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from lightrft.rewards.equality import equal_expressions, require_math_verify
from lightrft.rewards.exact_match import required_answer
from lightrft.rewards.format import NUMBER
from lightrft.types import Sample

MARK = "####"
TAIL_CHARS = 2000
"""Only the end of a text is searched: the result is there, and a text of any length costs the same."""
ANSWER_CHARS = 200
"""Nobody's final answer is longer; parsing a longer one takes seconds."""

# A minus after a digit, letter or bracket subtracts; anywhere else it is a sign.
_ANY_NUMBER = re.compile(rf"(?:(?<![0-9A-Za-z)\]}}])-)?{NUMBER}(?:/{NUMBER})?")
_VALUE = re.compile(rf"(-?)\$?({NUMBER}|\.[0-9]+)(?:/({NUMBER}))?(?: +[A-Za-z]{{2}}[A-Za-z .]*)?")
_OPERATOR = re.compile(r"[\\^/*+(){}=%-]")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")


def math_reward(samples: Sequence[Sample]) -> list[float]:
    """1.0 where the completion's final answer equals the reference's, else 0.0.

    The final answer stands after the last `####` (to the end of that line), else in the last `\\boxed{}`, else it is the whole text
    where that is a bare expression, else the last number. Numbers are compared exactly here, expressions by math-verify.

    Raises:
        RewardError: math-verify is not installed.
        ValueError: a sample without a reference, or one in which there is no answer.
    """
    require_math_verify()
    rewards = [0.0] * len(samples)
    unsettled: dict[int, tuple[str, str]] = {}
    for index, sample in enumerate(samples):
        reference, found = _reference(sample, index), final_answer(sample.completion)
        same = False if found is None else _settle(reference, found)
        if same is None and found is not None:
            unsettled[index] = (reference, found)
        rewards[index] = float(bool(same))
    verdicts = equal_expressions(unsettled.values())
    for index, pair in unsettled.items():
        rewards[index] = float(verdicts[pair])
    return rewards


def final_answer(text: str) -> str | None:
    """The part of a text that states its result, without spaces and dollar signs around it; None where there is none."""
    tail = text[-TAIL_CHARS:]
    if MARK in tail:
        lines = tail.rpartition(MARK)[2].strip().splitlines()
        return _clean(lines[0]) if lines else None
    boxed = _last_boxed(tail)
    if boxed is not None:
        return _clean(boxed)
    if len(text) <= ANSWER_CHARS and _is_bare(text):
        return _clean(text)
    numbers = _ANY_NUMBER.findall(tail)
    return numbers[-1] if numbers else None


def _reference(sample: Sample, index: int) -> str:
    answer = required_answer(sample, index)
    found = final_answer(answer) or _clean(answer)
    if found is None or MARK in found:
        raise ValueError(f"sample {index}: the reference {answer[:60]!r} holds no answer; set label_key to the column with the answers")
    return found


def _settle(reference: str, found: str) -> bool | None:
    """Equal or not where that is plain to see; None where it takes math-verify."""
    if reference == found:
        return True
    if len(found) > ANSWER_CHARS:
        return False
    right, value = _value(reference), _value(found)
    if right is not None and value is not None:
        return right == value
    if right is not None and not (_OPERATOR.search(found) and re.search("[0-9]", found)):
        return False  # there is nothing to compute in it that could give a number
    words = _words(reference)
    if words is not None:
        return words == _words(found)
    return None


def _value(text: str) -> Fraction | None:
    """The number that a text is: `-1,234.50`, `3/4`, `18 dollars`; None for anything else."""
    match = _VALUE.fullmatch(text)
    if match is None:
        return None
    sign, top, bottom = match.groups()
    divisor = Fraction((bottom or "1").replace(",", ""))
    return Fraction(sign + top.replace(",", "")) / divisor if divisor else None


def _words(text: str) -> str | None:
    """A name in lower case, `\\text{}` aside. As products of letters, which they are to a parser, anagrams would be equal."""
    plain = _TEXT_COMMAND.sub(r"\1", text).strip().casefold()
    return plain if len(plain) > 1 and plain.replace(" ", "").isalpha() else None


def _is_bare(text: str) -> bool:
    """Whether the text is one expression and no sentence: one line in which no word stands by itself."""
    tokens = text.split()
    if len(text.strip().splitlines()) != 1:
        return False
    return len(tokens) == 1 or not any(len(word) > 1 and word.isalpha() for word in (token.strip(".,;:!?") for token in tokens))


def _clean(text: str) -> str | None:
    stripped = text.strip().replace("\\$", "$").strip("$ ").rstrip(".").strip("$ ")
    return stripped or None


def _last_boxed(text: str) -> str | None:
    """What the last complete `\\boxed{...}` holds, by counting braces."""
    for match in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for end in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[match.end() : end]
    return None
