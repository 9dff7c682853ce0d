"""How values cross between the program of a model and the checker of its tests: as data, one JSON message after the other.

Its source runs at the beginning of both processes, so it imports the standard library only. Plain values cross as they are; an object of
the program crosses as a number (`h`), a function of the tests as another (`k`). Nothing that arrives is ever evaluated or unpickled.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque

TYPE_CHECKING = False  # without typing a process starts a tenth faster
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_BYTES = 32 << 20
"""Of one message."""

PLAIN = (int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, complex, deque, range, slice)


class Wire:
    """Messages over two file descriptors; each is its length in 8 hexadecimal digits and JSON."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write

    def send(self, message: Any) -> None:
        """Raises BrokenPipeError where nobody reads, ValueError where it is too long."""
        text = json.dumps(message).encode()
        if len(text) > MAX_BYTES:
            raise ValueError(f"a message of {len(text)} bytes; at most {MAX_BYTES} cross")
        rest = memoryview(b"%08x" % len(text) + text)
        while rest:
            rest = rest[os.write(self._write, rest) :]

    def receive(self) -> Any:
        """Raises EOFError where the other side has ended, ValueError for what is no message."""
        length = int(self._exactly(8), 16)
        if not 0 <= length <= MAX_BYTES:
            raise ValueError("no message")
        return json.loads(self._exactly(length))

    def _exactly(self, number: int) -> bytes:
        parts = []
        while number:
            part = os.read(self._read, min(number, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            number -= len(part)
        return b"".join(parts)


def _number_type(name: str) -> Any:
    """Decimal or Fraction."""
    return getattr(__import__(name.lower() + ("s" if name == "Fraction" else "")), name)


def _is_number(value: Any) -> bool:
    modules = ((sys.modules.get("decimal"), "Decimal"), (sys.modules.get("fractions"), "Fraction"))
    return any(type(value) is getattr(module, name, None) for module, name in modules)


def pack(value: Any, other: Callable[[Any], Any]) -> Any:
    """As JSON; `other` gives the JSON of what is no plain value. A subclass of a plain type crosses as that type."""
    if value is None or isinstance(value, (bool, str)):
        return value if type(value) in (type(None), bool, str) else str.__str__(value)
    kind = next((plain for plain in PLAIN if type(value) is plain), None) or next((p for p in PLAIN if isinstance(value, p)), None)
    if kind is None:
        return {type(value).__name__: str(value)} if _is_number(value) else other(value)
    if kind in (int, float):
        return kind(value)
    if kind is list:
        return [pack(one, other) for one in list(value)]
    if kind is dict:
        return {"dict": [[pack(key, other), pack(one, other)] for key, one in dict(value).items()]}
    if kind in (bytes, bytearray):
        return {kind.__name__: bytes(value).hex()}
    if kind in (tuple, set, frozenset, deque):
        return {kind.__name__: [pack(one, other) for one in kind(value)]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    return {kind.__name__: [pack(one, other) for one in (value.start, value.stop, value.step)]}


MADE: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "dict": lambda given, each: {each(key): each(value) for key, value in given},
    "bytes": lambda given, each: bytes.fromhex(given),
    "bytearray": lambda given, each: bytearray.fromhex(given),
    "tuple": lambda given, each: tuple(each(one) for one in given),
    "set": lambda given, each: {each(one) for one in given},
    "frozenset": lambda given, each: frozenset(each(one) for one in given),
    "deque": lambda given, each: deque(each(one) for one in given),
    "complex": lambda given, each: complex(float(given[0]), float(given[1])),
    "range": lambda given, each: range(*(each(one) for one in given)),
    "slice": lambda given, each: slice(*(each(one) for one in given)),
    "Decimal": lambda given, each: _number_type("Decimal")(str(given)),
    "Fraction": lambda given, each: _number_type("Fraction")(str(given)),
}


def unpack(packed: Any, other: Callable[[str, Any], Any]) -> Any:
    """The reverse; `other` gives what a tag (`h`, `k`) and its number stand for. Raises ValueError, TypeError or KeyError."""
    if packed is None or isinstance(packed, (bool, int, float, str)):
        return packed
    if isinstance(packed, list):
        return [unpack(one, other) for one in packed]
    [(tag, given)] = packed.items()
    if tag in MADE:
        return MADE[tag](given, lambda one: unpack(one, other))
    return other(tag, given)


def put_back(target: Any, value: Any) -> None:
    """Gives a list, dict, set, deque or bytearray the content that the other side has left in its copy."""
    if isinstance(target, (list, bytearray)):
        target[:] = value
        return
    target.clear()
    if isinstance(target, deque):
        target.extend(value)
    else:
        target.update(value)


CHANGEABLE = (list, dict, set, deque, bytearray)
