"""The options of an engine's library that `engine_args` may set: read off the library's source, so that nothing of it is imported.

A plugin's spec names a function that returns them (`EngineSpec.options`). No torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightrft.errors import nearest

PLAIN: dict[str, tuple[type, ...]] = {
    "bool": (bool,), "int": (int,), "float": (float, int), "str": (str,), "None": (type(None),), "list": (list,), "dict": (dict,),
    "List": (list,), "Dict": (dict,),
}  # fmt: skip
"""The types whose values are checked here; an option with any other in its annotation is the library's to check."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """`types`: each option of the library and its annotation, as in its source. `ours`: those that LightRFT sets, and the setting to use in
    their place; an empty one: it has to be as it is. `example`: an option and a value, other than the engine's own choice, that changes
    no answer: the conformance kit starts an engine with it.

    Raises ValueError: a type is no annotation (that of a class is its name, not its `repr`).

    Example:
        >>> options = EngineOptions(types={"enforce_eager": "bool", "seed": "int"}, ours={"seed": "seed"})
        >>> list(options.problems({"enforce_eagr": True, "seed": 1}, engine="acme"))[0]
        "engine_args.enforce_eagr: engine 'acme' has no such option; did you mean 'enforce_eager'?"
    """

    types: Mapping[str, str]
    ours: Mapping[str, str]
    example: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, annotation in self.types.items():
            try:
                ast.parse(annotation, mode="eval")
            except SyntaxError:
                raise ValueError(f"the type of option {name!r} is {annotation!r}, which is no annotation") from None

    def problems(self, given: Mapping[str, Any], *, engine: str) -> Iterator[str]:
        """One line for each option that is unknown, is set by LightRFT, or has a value of another type."""
        for name, value in given.items():
            if name in self.ours:
                use = f"use {self.ours[name]}" if self.ours[name] else "leave it out"
                yield f"engine_args.{name}={value!r}: LightRFT sets this option of engine {engine!r}; {use}"
            elif name not in self.types:
                yield f"engine_args.{name}: engine {engine!r} has no such option{nearest(name, self.types)}"
            elif not fits(value, self.types[name]):
                yield f"engine_args.{name}={value!r}: engine {engine!r} takes {self.types[name]}"


def fits(value: Any, annotation: str) -> bool:
    """Whether a value has the type of an annotation, given as text; True where the annotation holds a type that is not known here.

    Example:
        >>> fits(3, "int | None"), fits("3", "int"), fits(True, "int"), fits("fp8", "Literal['auto', 'fp8']"), fits("x", "CacheDType")
        (True, False, False, True, True)
    """
    accepted = [_accepts(part, value) for part in _parts(ast.parse(annotation, mode="eval").body)]
    return any(one is not False for one in accepted)


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """The members of a union."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from (*_parts(node.left), *_parts(node.right))
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("Optional", "Union"):
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for member in members:
            yield from _parts(member)
        if node.value.id == "Optional":
            yield ast.Constant(value=None)
    else:
        yield node


def _accepts(node: ast.expr, value: Any) -> bool | None:
    """None: not known here."""
    if isinstance(node, ast.Constant):
        return value is node.value
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
        members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return value in [ast.literal_eval(member) for member in members]
    name = node.value if isinstance(node, ast.Subscript) else node
    kinds = PLAIN.get(name.id) if isinstance(name, ast.Name) else None
    if kinds is None:
        return None
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def source_of(package: str, *parts: str) -> Path:
    """A file or folder of an installed package, which is not imported. Raises ModuleNotFoundError."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package!r} is installed here")
    return Path(next(iter(spec.submodule_search_locations)), *parts)


def fields_of(file: Path, *, name: str = "") -> dict[str, str]:
    """Fields and their annotations, as text, of the class `name` of a Python file, or of all its classes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and name in ("", node.name)]
    fields = [field for one in classes for field in one.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)]
    return {field.target.id: ast.unparse(field.annotation) for field in fields if isinstance(field.target, ast.Name)}
