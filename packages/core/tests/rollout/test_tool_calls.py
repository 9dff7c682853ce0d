"""Tools: what a function's schema is, what the model is told of its calls, and what ends an episode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from lightrft.errors import CodePermissionError
from lightrft.rollout.environment import Continue, End, Step, ToolCall, Turn
from lightrft.rollout.tool_calls import ToolCalls
from lightrft.rollout.tool_schema import tool_schema, unfit
from lightrft.testing.tool_functions import add

DOC = "Does.\n\n    Args:\n        a: one\n        b: another\n    "


def fail(a: str) -> str:
    """Fails.

    Args:
        a: how
    """
    if a == "exit":
        raise SystemExit(2)
    if a == "run":
        raise CodePermissionError("off")
    raise KeyError(a)


async def wait(a: str) -> str:
    """Waits.

    Args:
        a: for what
    """
    await asyncio.sleep(0)
    return fail(a) if a == "raise" else a


class Tools(ToolCalls):
    functions = (add, fail, wait)
    max_result_chars = 40


class OfRow(ToolCalls):
    """A method sees its episode."""

    def start(self, row: Mapping[str, Any]) -> None:
        self.row = row

    def read(self, name: Literal["x", "y"]) -> Any:
        """Reads of the row.

        Args:
            name: what
        """
        return self.row[name]

    functions = (read,)


def said(*calls: ToolCall, number: int = 0) -> Turn:
    return Turn(number=number, token_ids=(1,), text="", raw_text="", finish_reason="stop", is_last=False, calls=calls)


def call(tool: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name=tool, arguments=arguments)


def stepped(environment: ToolCalls, *calls: ToolCall) -> Step:
    step = environment.step(said(*calls))
    return step if isinstance(step, Step) else asyncio.run(step)  # type: ignore[arg-type]


def told(environment: ToolCalls, *calls: ToolCall) -> list[str]:
    step = stepped(environment, *calls)
    assert isinstance(step, Continue) and step.messages is not None
    assert all(message["role"] == "tool" for message in step.messages)
    return [message["content"] for message in step.messages]


def test_results_are_told_in_order_and_an_answer_ends_it() -> None:
    made = Tools()
    step = stepped(made, call("add", a=2, b=3), call("wait", a="now"), call("add", a=4))
    assert isinstance(step, Continue)
    assert step.messages == [
        {"role": "tool", "name": "add", "tool_call_id": "call00000", "content": "5"},
        {"role": "tool", "name": "wait", "tool_call_id": "call00001", "content": "now"},
        {"role": "tool", "name": "add", "tool_call_id": "call00002", "content": "5"},
    ]
    assert step.info["tool_calls"] == 3
    end = stepped(made)
    assert isinstance(end, End) and end.reward == {}
    assert end.info == {"tool_calls": 3, "unreadable_calls": 0, "unknown_tools": 0, "unfit_arguments": 0, "raised_calls": 0}


def test_what_is_wrong_with_a_call_is_told_and_counted() -> None:
    made = Tools()
    made.max_result_chars = 4000  # type: ignore[misc]
    assert told(made, ToolCall(problem="no JSON"), call("ad", a=1), call("add", a="1"), call("fail", a="x"), call("fail", a="exit")) == [
        "error: the call cannot be read: no JSON",
        "error: there is no tool 'ad'; there are: add, fail, wait",
        "error: add: a is '1', not of type integer",
        "error: KeyError: 'x'",
        "error: SystemExit: 2",
    ]
    assert told(made, call("wait", a="raise"), call("add", a=1)) == ["error: KeyError: 'raise'", "2"]
    end = stepped(made)
    assert isinstance(end, End)
    assert end.info == {"tool_calls": 7, "unreadable_calls": 1, "unknown_tools": 1, "unfit_arguments": 1, "raised_calls": 3}


def test_an_error_of_the_run_is_none_of_the_model_s() -> None:
    with pytest.raises(CodePermissionError, match="off"):
        stepped(Tools(), call("fail", a="run"))


def test_a_long_result_is_cut_and_a_value_is_json() -> None:
    assert told(Tools(), call("wait", a="0123456789" * 5)) == ["0123456789" * 4 + "... (10 more characters)"]
    assert told(Tools(), call("wait", a="\ud800")) == ["?"]
    made = OfRow()
    made.start({"x": {"é": [1, None]}, "y": {1, 2}})
    assert told(made, call("read", name="x"), call("read", name="y")) == ['{"é": [1, null]}', json.dumps(str({1, 2}))]
    made.start({"x": object(), "y": [1, (one for one in "ab")]})
    nothing = [f"error: TypeError: it returned a {kind}, which has no text" for kind in ("object", "generator")]
    assert told(made, call("read", name="x"), call("read", name="y")) == nothing
    assert told(made, call("read", name="z")) == ["error: read: name is 'z', none of 'x', 'y'"]
    [schema] = OfRow.tools()
    assert schema["function"]["parameters"]["required"] == ["name"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"a": 1}, ""),
        ({}, "a missing"),
        ({"a": True}, "a is True, not of type integer"),
        ({"a": 1, "c": 2}, "there is no parameter 'c'; there are: a, b"),
    ],
)
def test_arguments_fit_or_not(arguments: dict[str, Any], problem: str) -> None:
    assert unfit(arguments, tool_schema(add)) == problem


def undescribed(a: int) -> int:
    """Does."""
    return a


def untyped(a) -> int:  # type: ignore[no-untyped-def]
    return int(a)


def foreign(a: bytes) -> int:
    return len(a)


def many(*a: int) -> int:
    return sum(a)


untyped.__doc__ = foreign.__doc__ = many.__doc__ = DOC


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (undescribed, "tool undescribed: .*no description for the argument 'a'"),
        (untyped, "tool untyped: Argument a is missing a type hint"),
        (foreign, "tool foreign: parameter 'a' has the type bytes, which JSON does not have; possible are str"),
        (many, r"tool many: parameter \*a has no name of its own"),
        (lambda: 1, "is no function with a name; write it with def"),
    ],
)
def test_a_function_without_a_schema_is_named_with_its_parameter(function: Callable[..., Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        type("One", (ToolCalls,), {"functions": (function,)}).tools()  # type: ignore[attr-defined]


def test_functions_are_needed_and_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="ToolCalls.functions is empty"):
        ToolCalls.tools()
    with pytest.raises(ValueError, match="two of the name 'add'"):
        type("Two", (ToolCalls,), {"functions": (add, add)}).tools()  # type: ignore[attr-defined]
