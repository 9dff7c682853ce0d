"""The process of a row's tests: runs them, and asks the program's process for what they use of it. Runs after the source of `wire`.

Results are compared here, as plain values; the program sees the arguments of calls and nothing else. An object of a class of the program is
a `Remote`: it may be called and asked for items and attributes, but no operator between it and a plain value reaches the program,
which would learn the expected value and could say that they are equal.
"""

# mypy: disable-error-code="name-defined"
from __future__ import annotations

import builtins
import json
import os
import re
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lightrft.utils.sandbox.wire import CHANGEABLE, Wire, pack, put_back, unpack

ASKS_ABOUT_A_VALUE = frozenset(
    name
    for plain in (str, float, set)
    for name in dir(plain)
    if name in ("startswith", "endswith") or (name.startswith("is") and not name.startswith("__"))
)
"""Questions to a string, a number or a set: asked of a program's object, the program would answer them."""


OF_SETS = frozenset(("difference", "intersection", "symmetric_difference", "union"))
"""Operators by their names: with a plain set, the program's object would be given what the tests compare, and could give it back."""


class Broken(BaseException):
    """The program's process has ended, or does not keep to the form; no `except Exception` of a test may hide it."""


class ProgramAssertion(AssertionError):
    """One of the program's."""


class Channel:
    """Requests to the program's process. `asked` counts them; `broken` stays, whatever a test catches."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.asked = 0
        self.broken = False
        self.functions: list[Callable[..., Any]] = []
        self.exceptions: dict[str, type[Exception]] = {}

    def begin(self, program: str) -> dict[str, str]:
        """Runs the program; returns the kinds of its global names."""
        reply = self.exchange(program)
        if reply[0] != "ready":
            raise Broken
        return {str(name): str(kind) for name, kind in dict(reply[1]).items() if not str(name).startswith("__")}

    def ask(self, what: str, *given: Any) -> Any:
        """One request, and its result."""
        self.asked += 1
        number = self.asked
        return self.result(number, [number, what, *(self.pack(one) for one in given)], ())

    def call(self, target: Remote, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What it returns; where that is None, lists and the like among the arguments get what it has left in them."""
        self.asked += 1
        number = self.asked
        return self.result(number, [number, "call", self.pack(target), self.pack([*arguments]), self.pack(keywords)], arguments)

    def result(self, number: int, request: Any, arguments: tuple[Any, ...]) -> Any:
        reply = self.exchange(request)
        while reply[0] == "callback":
            reply = self.exchange(self.called_back(*reply[1:]))
        if self.broken or reply[0] != number:
            self.broken = True
            raise Broken
        if reply[1] == "stop":
            raise StopIteration if request[1] == "next" else RuntimeError("the program raised StopIteration")
        if reply[1] == "error":
            raise self.error(str(reply[2]), str(reply[3]))
        try:
            value = unpack(reply[2], self.known)
            for place, content in reply[3] if value is None else ():
                if isinstance(arguments[place], CHANGEABLE):
                    put_back(arguments[place], unpack(content, self.known))
        except Exception:
            self.broken = True
            raise Broken from None
        return value

    def exchange(self, message: Any) -> list[Any]:
        try:
            self.wire.send(message)
            reply = self.wire.receive()
        except (OSError, EOFError, ValueError, RecursionError):
            self.broken = True
            raise Broken from None
        if not isinstance(reply, list) or len(reply) < 2:
            self.broken = True
            raise Broken
        return reply

    def called_back(self, number: Any, arguments: Any, keywords: Any) -> list[Any]:
        """A function of the tests, called by the program."""
        try:
            result = self.functions[number](*unpack(arguments, self.known), **unpack(keywords, self.known))
            return ["answer", "value", self.pack(result)]
        except Exception as error:
            self.broken |= type(error) is AssertionError  # of the tests: it counts, whatever the program does with it
            return ["answer", "error", type(error).__name__, str(error)[:1000]]

    def error(self, name: str, text: str) -> BaseException:
        """What a request raised. StopIteration would end a `map` of the tests, as if all had been asked."""
        found = {"AssertionError": ProgramAssertion, **self.exceptions}.get(name) or getattr(builtins, name, None)
        if not (isinstance(found, type) and issubclass(found, Exception)) or issubclass(found, (StopIteration, StopAsyncIteration)):
            return RuntimeError(f"{name}: {text}")
        try:
            return found(text)
        except TypeError:  # such as UnicodeDecodeError, which takes five arguments
            return RuntimeError(f"{name}: {text}")

    def pack(self, value: Any) -> Any:
        return pack(value, self.other)

    def other(self, value: Any) -> Any:
        if type(value) is Remote:
            return {"h": object.__getattribute__(value, "_number")}
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)):
            self.functions.append(value)
            return {"k": len(self.functions) - 1}
        raise TypeError(
            f"a {type(value).__name__} of the tests cannot be given to the program; give plain values, or let it define the class"
        )

    def known(self, tag: str, number: Any) -> Any:
        if tag == "h" and type(number) is int:
            return Remote(self, number)
        return self.functions[number]


class Remote:
    """An object in the program's process."""

    __slots__ = ("_channel", "_number")

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _channel(self).call(self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ASKS_ABOUT_A_VALUE:
            raise AttributeError(f"{name} is not asked of an object of the program")
        if name in OF_SETS:
            return lambda *others: _among_objects(self, name, others)
        return _channel(self).ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _channel(self).ask("set", self, name, value)

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_number"))

    def __eq__(self, other: object) -> Any:
        return _between("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return _between("ne", self, other)

    def __instancecheck__(self, one: object) -> bool:
        return type(one) is Remote and bool(_channel(self).ask("isinstance", one, self))

    def __exit__(self, *about: object) -> None:
        _channel(self).ask("exit", self)


def _channel(remote: Remote) -> Any:
    return object.__getattribute__(remote, "_channel")


def _between(operation: str, one: Remote, other: object) -> Any:
    return _channel(one).ask(operation, one, other) if type(other) is Remote else NotImplemented


def _among_objects(remote: Remote, name: str, others: tuple[Any, ...]) -> Any:
    if not all(type(one) is Remote for one in others):
        raise TypeError(f"{name} of an object of the program and a plain value")
    return _channel(remote).ask("get", remote, name)(*others)


def _unary(operation: str) -> Any:
    return lambda self, *arguments: _channel(self).ask(operation, self, *arguments)


def _binary(operation: str) -> Any:
    return lambda self, other: _between(operation, self, other)


UNARY = ("len", "iter", "next", "bool", "str", "repr", "int", "float", "index", "getitem", "setitem", "delitem", "enter", "neg", "pos")
BINARY = ("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
for _name in UNARY:
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name in BINARY:
    setattr(Remote, f"__{_name.strip('_')}__", _binary(_name))


def passes(channel: Channel, program: str, tests: str) -> bool:
    """Whether the program and then its tests run to their end, having asked the program for something."""
    code = compile(tests, "tests.py", "exec")
    kinds = channel.begin(program)
    given = {name: _given(channel, name, kinds[name], tests) for name in sorted(_names(code)) if name in kinds}
    sys.modules["program"] = module = types.ModuleType("program")
    vars(module).update(given)  # `from program import sum` takes the program's, where `sum` alone is the builtin
    namespace = {"__name__": "__main__"} | {name: value for name, value in given.items() if not hasattr(builtins, name)}
    exec(code, namespace)  # the row's tests, which came with the data
    return channel.asked > 0 and not channel.broken


def _names(code: types.CodeType) -> set[str]:
    """All names that the tests use from outside, and those of attributes."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return {*code.co_names}.union(*(_names(one) for one in inner))


def _given(channel: Channel, name: str, kind: str, tests: str) -> Any:
    """A global name of the program as the tests see it. A module, or what the tests use as one, is the checker's own."""
    if name in sys.stdlib_module_names and (kind == "module" or re.search(rf"\b{name}\s*\.", tests)):
        return __import__(name)
    if kind == "module":
        raise Broken
    base = getattr(builtins, kind.removeprefix("exception:"), None)
    if kind.startswith("exception:") and isinstance(base, type) and issubclass(base, Exception):
        channel.exceptions[name] = type(name, (base,), {})
        return channel.exceptions[name]
    return channel.ask("global", name)


def main() -> None:
    parts = []
    while part := os.read(0, 1 << 20):
        parts.append(part)
    job = json.loads(b"".join(parts))
    verdict, channel = os.dup(1), Channel(Wire(os.dup(3), os.dup(4)))
    for descriptor in (0, 1, 2, 3, 4):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    try:
        found = passes(channel, job["program"], job["tests"])
    except BaseException:  # whatever it is, the tests have not reached their end
        found = False
    os.write(verdict, b"passed" if found else b"failed")
    os._exit(0)


if __name__ == "__main__":
    main()
