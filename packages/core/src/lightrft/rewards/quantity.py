"""The number that an answer states. One number with its unit, in the ways that people and models write it; anything doubtful is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from lightrft.rewards.arithmetic import MAX_CHARS, evaluate
from lightrft.rewards.plain_text import plain

_DOUBT = (
    r"or|nor|not|no|never|cannot|\w+n't|wrong|incorrect|false"
    r"|maybe|perhaps|possibly|either|neither|between|unknown|undefined|unclear|unsure"
)
DOUBT = re.compile(rf"\b(?:{_DOUBT})\b", re.IGNORECASE)
"""Words with which a sentence states no single number."""
_DOUBT_BEFORE = re.compile(
    rf"\b(?:{_DOUBT}|than|least|most|up to|over|under|below|above|nearly|almost|without|might|could|may|if|minus|plus|times|step|question"
    r"|case|example|part|option|number of the|until|from|half|square|root|sum of|product of|difference)\b",
    re.IGNORECASE,
)
MULTIPLE_BEFORE = re.compile(r"\b(?:double|twice|triple|thrice|(?:third|quarter|fifth|tenth|fraction) of)(?: the| an?)?\s*$", re.IGNORECASE)
_DOUBT_AFTER = re.compile(
    rf"\b(?:{_DOUBT}|plus|minus|squared|cubed|half|halves|thirds?|fourths?|fifths?|tenths?|hundredths?|thousandths?|pi|infinity|out of"
    r"|modulo|mod|remainder|factorial|degrees? of|below zero)\b|[?!]",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"\W*\b(?:because|since|as|which|so|after|for|in|by|on|at|given|when|where|(?:and )?not(?= \$?-?\d)|rather than|instead of)\b",
    re.IGNORECASE,
)
"""What begins a clause that explains the number before it; other numbers may stand there."""
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*-?({'|'.join(_SCALES)})s?\b(?!\s+(?:{'|'.join(_SCALES)}))", re.IGNORECASE)
_GLUED_SCALES = {"k": 1000, "K": 1000, "M": 10**6, "B": 10**9}
_PERCENT = re.compile(r"\s*(?:%|percent(?:age)?(?: points?)?\b|per cent\b|pct\b)", re.IGNORECASE)
_SHORT_UNITS = frozenset(
    re.findall(
        r"\S+",
        "m g s h l L J N W V A C F K cm mm km dm nm ft in yd mi kg mg lb lbs oz ml mL cl dl kl hr hrs min sec ms mph kph kmh am pm a.m p.m "
        "USD EUR GBP km/h m/s mi/h yr yrs wk pt qt gal pts st nd rd th sq cu kB MB GB TB Hz kW",
    )
)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])(?:\s?\^\(?-?[123]\)?|[23]\b)")
_ASIDE = re.compile(r"(?<=[\w%]) \((?=[^()]*[A-Za-z])[^()]*=[^()]*\)$")
_NAME = re.compile(r"[A-Za-z](?:_?\w|_[({]?\w+[)}]?|\(-?\w+(?:\s*,\s*-?\w+)*\))?")
"""Of a variable, of an element of a sequence, of the value of a function: `x`, `a_10`, `f(2)`."""
_AFTER_NUMBER = re.compile(r"[A-Za-z%<>≤≥±≈?!,;:]|\(\s*[A-Za-z]|$")
NO_NUMBER = re.compile(r"\d{4}-\d\d?-\d\d?|\d*\.\d+\s*(?:\.\.+|…)")
"""A date, and a decimal that goes on."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """An exact number; `percent` where it was written with a percent sign, `name` of the variable that it was said to be the value of."""

    value: Fraction
    percent: bool = False
    name: str = ""


def quantity(text: str) -> Quantity | None:
    """The number that a short text states: `$1,234.50`, `-3/4`, `2\\frac{1}{2} cups`, `50\\%`, `x = 5`, `9*2 = 18 dollars`, `1.5e3`.

    None where it states none, several, or one that it takes back (`18 or 20`, `less than 18`, `2x = 18`, `18 is wrong`).
    """
    if len(text) > MAX_CHARS:
        return None
    flat = plain(text)
    if NO_NUMBER.search(text):
        return None
    if aside := _ASIDE.search(flat):
        flat = flat if DOUBT.search(aside[0]) else flat[: aside.start()]
    sides = [side.strip() for side in re.split(r"[=≈]", flat)]
    last = _stated(sides[-1])
    if last is None:
        return None
    name = ""
    for side in sides[:-1]:
        if _NAME.fullmatch(side):
            name = side
            continue
        if not re.search(r"\d", side):
            if DOUBT.search(side) or not re.fullmatch(r"[\w\s',.:()-]*", side):
                return None
            continue
        value = evaluate(side)
        if re.search(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", side) or (value is not None and value != last.value):
            return None  # an equation that is to be solved, or one that does not hold
    return Quantity(value=last.value, percent=last.percent, name=name)


def same_quantity(reference: Quantity, found: Quantity) -> bool:
    """Equal numbers. A percent sign may be left out or added: 50% is 50 and 0.5; but 0.5% is not the 0.5 of a reference."""
    if reference.name and found.name and reference.name != found.name:
        return False
    if reference.percent == found.percent:
        return reference.value == found.value
    percent, other = (reference, found) if reference.percent else (found, reference)
    return percent.value / 100 == other.value or (percent.value == other.value and abs(other.value) >= 1)


def _stated(text: str) -> Quantity | None:
    text = re.sub(r"(\d) and (\d+/\d+)", r"\1 \2", text)
    lead = re.match(r"[^\d.(+-]*(?:(?:\.(?!\d)|-(?!\s*\(?\s*[-+.]?\d)|\((?!\s*[-+.]?\d)|\((?=[^)]*[A-Za-z]))[^\d.(+-]*)*", text)
    assert lead is not None
    before, rest = lead[0], text[lead.end() :]
    sign = 1
    if negative := re.search(r"\b(?:negative|minus)\s*$", before, re.IGNORECASE):
        before, sign = before[: negative.start()], -1
    if (re.match(r"[-+]\s", rest) and re.search(r"[\w)]\s*$", before)) or (re.match("[-+]", rest) and re.search(r"\b[A-Za-z]\s*$", before)):
        return None  # x + 18
    if (
        _DOUBT_BEFORE.search(before)
        or MULTIPLE_BEFORE.search(before)
        or re.search(r"[<>≤≥±\\^*/]|[A-Za-z_]$", before.rstrip() if not before.endswith(" ") else before)
    ):
        return None
    return _number_and_unit(rest, sign)


def _number_and_unit(rest: str, sign: int) -> Quantity | None:
    scientific = re.match(r"[-+]?\s*[\d,.]+[eE][-+]?\d+(?![\w.])", rest)
    end = scientific.end() if scientific else _end_of_number(rest)
    number, tail = rest[:end].rstrip(), rest[end:]
    if number.endswith("/") and re.match("[A-Za-z]", tail):  # 18/day
        number, tail = number[:-1], " per " + tail
    value = evaluate(number.rstrip(" .,;:"))
    if value is None:
        return None
    if percent := _PERCENT.match(tail):
        return Quantity(value=sign * value, percent=True) if _is_unit(" " + tail[percent.end() :]) else None
    if scale := _SCALE.match(tail):
        value, tail = value * _SCALES[scale[1].lower()], " " + tail[scale.end() :]
    elif tail[:1] in _GLUED_SCALES and not tail[1:2].isalnum() and rest[end - 1 : end].isdigit():
        value, tail = value * _GLUED_SCALES[tail[0]], tail[1:]
    glued = tail[:1].isalpha() and rest[end - 1 : end].isdigit()
    return Quantity(value=sign * value) if _is_unit(tail, glued=glued) else None


def _end_of_number(rest: str) -> int:
    """Where the first word, sign or separator after the number begins; a comma of thousands belongs to the number."""
    at = 0
    while match := _AFTER_NUMBER.search(rest, at):
        if match[0] == "," and re.match(r",\d{3}(?!\d)", rest[match.start() :]) and rest[match.start() - 1 : match.start()].isdigit():
            at = match.end()
            continue
        return match.start()
    return len(rest)


def _is_unit(tail: str, *, glued: bool = False) -> bool:
    """Whether what follows a number only says of what it is, or why."""
    if re.match(r"\((?:[^()]*[-+*/^=]|\s*[A-Za-z]\s*\))", tail):  # 18(x + 1)
        return False
    tail = _UNIT_POWER.sub("", tail.strip())
    if re.match(r"[:\\]|[-+*/^<>≤≥±≈]", tail):
        return False
    for inside in re.findall(r"\(([^()]*)\)", tail):
        if _DOUBT_AFTER.search(inside):
            return False
    tail = re.sub(r"\([^()]*\)", " ", tail).strip(" ,;.:")
    first = re.match(r"[A-Za-z./]*", tail)
    word = (first[0] if first else "").strip("./")
    too_short = word and word not in _SHORT_UNITS and (len(word) < 2 or (glued and len(word) < 3))
    if too_short and (glued or not re.match(r"(?:a|I)\s+[A-Za-z]{2,}", tail)):  # 18 a day
        return False
    if re.search(r"\b(?:or|wrong|incorrect|false)\b", tail, re.IGNORECASE):
        return False
    if clause := _CLAUSE.search(" " + tail):
        tail = (" " + tail)[: clause.start()]
    return not re.search(r"[\d\\^*+=<>≤≥±|{}\[\]]", tail) and not _DOUBT_AFTER.search(tail)
