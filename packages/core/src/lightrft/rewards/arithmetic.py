"""The exact value of an arithmetic expression of plain numbers. Bounded: no expression takes long or much memory."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 200
MAX_BITS = 4096
MAX_DEPTH = 20
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)"
_TOKEN = re.compile(
    rf"\s*(?:(?P<mixed>\d+\s+\d+/\d+(?![\d./]))|(?P<number>(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?)|(?P<sign>[-+*/^()]))",
    re.ASCII,
)


def evaluate(text: str) -> Fraction | None:
    """The value of numbers, + - * / ^ and brackets; `2 1/2` is a mixed number, `1,234` one of thousands. None for anything else."""
    if len(text) > MAX_CHARS or re.fullmatch(r"\s*\(\s*\d+(,\d{3})+\s*\)\s*", text):  # (1,234) is a point
        return None
    tokens = _tokens(text)
    if not tokens:
        return None
    try:
        parser = _Parser(tokens)
        value = parser.sum(0)
        return value if parser.at == len(tokens) else None
    except (ArithmeticError, _NoNumber):
        return None


class _NoNumber(Exception):
    pass


def _tokens(text: str) -> list[str] | None:
    found, at = [], 0
    text = text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        found.append(match[0].strip())
        at = match.end()
    return found


class _Parser:
    """Recursive descent; two numbers side by side are no product."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0

    def take(self, signs: str) -> str:
        if self.at < len(self.tokens) and self.tokens[self.at] in signs:
            self.at += 1
            return self.tokens[self.at - 1]
        return ""

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+-"):
            other = self.product(depth)
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*/"):
            other = self.signed(depth)
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def signed(self, depth: int) -> Fraction:
        sign = self.take("+-")
        value = self.power(depth)
        return -value if sign == "-" else value

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        if not self.take("^"):
            return base
        exponent = self.signed(depth + 1)
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if depth > MAX_DEPTH or exponent.denominator != 1 or abs(exponent) * size > MAX_BITS:
            raise _NoNumber
        power = base ** int(exponent)
        return Fraction(power)

    def atom(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH or self.at >= len(self.tokens):
            raise _NoNumber
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise _NoNumber
            return value
        token = self.tokens[self.at]
        if token in "+-*/^()":
            raise _NoNumber
        self.at += 1
        return _number(token)


def _number(token: str) -> Fraction:
    if "/" not in token:
        return Fraction(token.replace(",", "").removesuffix("."))
    whole, rest = token.split()
    part = Fraction(rest)
    if part >= 1:  # 2 3/2 is not how a mixed number is written
        raise _NoNumber
    return int(whole) + part


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NoNumber
    return value
