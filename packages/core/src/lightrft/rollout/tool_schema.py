"""The JSON schema of a Python function, and whether the arguments of a call fit it. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
OF_JSON = {str, int, float, bool, list, tuple, dict, NoneType, Any, Union, UnionType}
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,),
    "null": (NoneType,),
}  # fmt: skip


@cache
def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", "description", "parameters"}}`, as chat templates take it. A first `self` is left out.

    Raises:
        ValueError: no function with a name, a parameter without a name of its own, a type or a description, or a type that JSON does not
            have; the function and the parameter are named.
    """
    from transformers.utils.chat_template_utils import get_json_schema  # slow to import

    name = getattr(function, "__name__", "")
    if not callable(function) or not name.isidentifier():
        raise ValueError(f"{function!r:.80} is no function with a name; write it with def")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in NAMED:
            what = str(parameter).partition(":")[0]
            raise ValueError(f"tool {name}: parameter {what} has no name of its own, and the model gives arguments by name; write it out")
    try:
        hints = get_type_hints(function)
    except Exception as error:  # annotations are programs
        raise ValueError(f"tool {name}: {type(error).__name__}: {error} (in the type of a parameter)") from error
    for of, hint in hints.items():
        if other := _not_json(hint):
            what = "what it returns" if of == "return" else f"parameter {of!r}"
            raise ValueError(
                f"tool {name}: {what} has the type {other}, which JSON does not have; possible are str, int, float, bool, list, dict, "
                "Literal and unions of them"
            )
    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:  # of several kinds, the library's own
        raise ValueError(f"tool {name}: {' '.join(str(error.args[0] if error.args else error).split())}") from error
    schema["function"].pop("return", None)
    return schema


def _not_json(hint: Any) -> str:
    """The first type in an annotation that no JSON value is, or an empty string."""
    origin = get_origin(hint)
    if origin is Literal:
        return ""
    if (origin or hint) not in OF_JSON:
        return str(getattr(hint, "__name__", hint))
    return next((found for inner in get_args(hint) if (found := _not_json(inner))), "")


def unfit(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Why a function of this schema cannot be called so: a name that it does not have, one that is missing, a wrong type; else empty."""
    parameters = schema["function"]["parameters"]
    known = parameters["properties"]
    for name, value in arguments.items():
        if name not in known:
            return f"there is no parameter {name!r:.60}; there are: {', '.join(known) or 'none'}"
        if problem := _unfit_value(value, known[name]):
            return f"{name} is {value!r:.60}, {problem}"
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    return f"{', '.join(missing)} missing" if missing else ""


def _unfit_value(value: Any, schema: Mapping[str, Any]) -> str:
    """Type and choices at the top; what lies deeper is the function's to look at."""
    if value is None and schema.get("nullable"):
        return ""
    if "enum" in schema and value not in schema["enum"]:
        return f"none of {', '.join(map(repr, schema['enum']))}"
    asked = schema.get("type", [])
    names = [asked] if isinstance(asked, str) else asked
    fits = not names or any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)
    return "" if fits else f"not of type {' or '.join(names)}"
