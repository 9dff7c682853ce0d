"""The process of a model's program: runs it, then does what the checker asks of what it has defined. Runs after the source of `wire`.

Nothing here is out of the program's reach, and nothing needs to be: whatever it sends is taken as the values that it answers with.
"""

# mypy: disable-error-code="name-defined"
from __future__ import annotations

import operator
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lightrft.utils.sandbox.wire import CHANGEABLE, Wire, pack, unpack

OPERATIONS = {
    "len": len,
    "iter": iter,
    "next": next,
    "bool": bool,
    "str": str,
    "repr": repr,
    "int": int,
    "float": float,
    "index": operator.index,
    "isinstance": isinstance,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "enter": lambda one: type(one).__enter__(one),
    "exit": lambda one: type(one).__exit__(one, None, None, None),
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod")},
    **{name: getattr(operator, name) for name in ("pow", "matmul", "and_", "or_", "xor", "neg", "pos")},
}


class Program:
    """The objects that the checker knows by number, and its requests."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.namespace: dict[str, Any] = {}

    def run(self) -> None:
        """Until the checker ends."""
        module = types.ModuleType("__main__")
        self.namespace = vars(module)
        sys.modules["__main__"] = module
        exec(compile(self.wire.receive(), "program.py", "exec"), self.namespace)  # this is what it is for
        self.wire.send(["ready", {name: _kind(value) for name, value in list(self.namespace.items()) if not name.startswith("__")}])
        while True:
            self.answer(self.wire.receive())

    def answer(self, request: Any) -> None:
        """One request, which may ask back on its way."""
        number, what, *given = request
        try:
            reply = self.perform(what, given)
        except StopIteration:
            reply = ["stop"]
        except Exception as error:
            reply = ["error", type(error).__name__, str(error)[:1000]]
        try:
            self.wire.send([number, *reply])
        except (ValueError, TypeError, RecursionError) as error:
            self.wire.send([number, "error", type(error).__name__, str(error)[:1000]])

    def perform(self, what: str, given: list[Any]) -> list[Any]:
        """`value` with the result, and the arguments that it has changed in place."""
        if what == "global":
            return ["value", self.pack(self.namespace[given[0]]), []]
        if what == "call":
            target, packed, keywords = given
            arguments = self.unpack(packed)
            result = self.unpack(target)(*arguments, **self.unpack(keywords))
            changed = [] if result is not None else self.changed(arguments, packed)
            return ["value", self.pack(result), changed]
        arguments = [self.unpack(one) for one in given]
        if what == "get":
            return ["value", self.pack(getattr(*arguments)), []]
        if what == "set":
            setattr(*arguments)
            return ["value", None, []]
        return ["value", self.pack(OPERATIONS[what](*arguments)), []]

    def changed(self, arguments: list[Any], before: list[Any]) -> list[Any]:
        """Where a call has returned nothing: which of its arguments hold something else now."""
        pairs = [(place, one, self.pack(one)) for place, one in enumerate(arguments) if isinstance(one, CHANGEABLE)]
        return [[place, packed] for place, _, packed in pairs if packed != before[place]]

    def pack(self, value: Any) -> Any:
        return pack(value, self.number)

    def number(self, value: Any) -> Any:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return {"h": self.numbers[id(value)]}

    def unpack(self, packed: Any) -> Any:
        return unpack(packed, self.known)

    def known(self, tag: str, number: int) -> Any:
        if tag == "h":
            return self.objects[number]
        return lambda *arguments, **keywords: self.ask_back(number, arguments, keywords)

    def ask_back(self, number: int, arguments: Any, keywords: Any) -> Any:
        """A function of the tests that the program was given is called."""
        self.wire.send(["callback", number, self.pack(list(arguments)), self.pack(dict(keywords))])
        while True:
            message = self.wire.receive()
            if message[0] == "answer":
                break
            self.answer(message)
        if message[1] == "error":
            raise getattr(__import__("builtins"), message[2], RuntimeError)(message[3])
        return self.unpack(message[2])


def _kind(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return "module"
    if isinstance(value, type) and issubclass(value, Exception):
        return "exception:" + next(base.__name__ for base in value.__mro__ if base.__module__ == "builtins")
    return "value"


def main() -> None:
    wire = Wire(os.dup(0), os.dup(1))
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    Program(wire).run()


if __name__ == "__main__":
    main()
