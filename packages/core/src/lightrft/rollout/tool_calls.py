"""Tools: Python functions that the model calls in its turns; an episode ends with an answer that calls none. No torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

from lightrft.errors import LightRFTError
from lightrft.rollout.environment import Continue, End, Environment, Step, ToolCall, Turn
from lightrft.rollout.tool_schema import tool_schema, unfit

UNREADABLE, UNKNOWN, UNFIT, RAISED = "unreadable_calls", "unknown_tools", "unfit_arguments", "raised_calls"


class ToolCalls(Environment):
    """Gives the model the `functions` of a subclass. The prompt is the data row's; the last turn, which calls none, is the answer.

    A function has a type for each parameter and a docstring that describes them (`Args:`), from which its JSON schema is made; it may be
    `async`. One whose first parameter is `self` is called with the environment of its episode, so `start` can keep what belongs to the
    row. Its result is told to the model: a str as it is, else as JSON, `max_result_chars` characters at most.

    A call that cannot be read, that names no tool, whose arguments do not fit, or whose function raises is answered with `error: ...`, and
    the episode goes on. `info` has `tool_calls`, their number, and how many of them were `unreadable_calls`, `unknown_tools`,
    `unfit_arguments` and `raised_calls`. Errors of LightRFT itself are not told: they end the episode (`env_error`).

    Example::

        >>> import lightrft
        >>> def multiply(a: int, b: int) -> int:
        ...     '''Multiplies two whole numbers.
        ...
        ...     Args:
        ...         a: one of them
        ...         b: the other
        ...     '''
        ...     return a * b
        >>> class Calculator(lightrft.ToolCalls):
        ...     functions = (multiply,)
        >>> [tool["function"]["name"] for tool in Calculator.tools()]
        ['multiply']
    """

    functions: ClassVar[Sequence[Callable[..., Any]]] = ()
    max_result_chars: ClassVar[int] = 4000

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("tool_calls", UNREADABLE, UNKNOWN, UNFIT, RAISED), 0)

    @classmethod
    def tools(cls) -> Sequence[Mapping[str, Any]]:
        """The schemas of the functions.

        Raises:
            ValueError: no functions, two of one name, or one without a schema (it and the parameter are named).
        """
        if not cls.functions:
            raise ValueError(f"{cls.__name__}.functions is empty; list the functions that the model may call")
        schemas = [tool_schema(function) for function in cls.functions]
        names = [schema["function"]["name"] for schema in schemas]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{cls.__name__}.functions has two of the name {twice!r}; the model calls them by name")
        return schemas

    def step(self, turn: Turn) -> Step | Awaitable[Step]:
        if not turn.calls:
            return End(info=dict(self.counts))
        results = [self._result(call) for call in turn.calls]
        if any(inspect.isawaitable(result) for result in results):
            return self._told_later(turn.calls, results)
        return self._told(turn.calls, results)

    # ---- parts ---------------------------------------------------------------------------------------------------------------------------

    def _result(self, call: ToolCall) -> Any:
        """What the model is told, a str; of an `async` function, what gives it."""
        self.counts["tool_calls"] += 1
        if call.problem:
            return self._error(UNREADABLE, f"the call cannot be read: {call.problem}")
        known = {function.__name__: function for function in self.functions}
        function = known.get(call.name)
        if function is None:
            return self._error(UNKNOWN, f"there is no tool {call.name!r:.60}; there are: {', '.join(known)}")
        if problem := unfit(call.arguments, tool_schema(function)):
            return self._error(UNFIT, f"{call.name}: {problem}")
        first = next(iter(inspect.signature(function).parameters), "")
        try:
            result = function(self, **call.arguments) if first == "self" else function(**call.arguments)
            return self._awaited(result) if inspect.isawaitable(result) else self._text(result)
        except LightRFTError:  # of the run, not of the call
            raise
        except (Exception, SystemExit) as error:
            return self._raised(error)

    async def _awaited(self, result: Awaitable[Any]) -> str:
        try:
            return self._text(await result)
        except LightRFTError:
            raise
        except (Exception, SystemExit) as error:
            return self._raised(error)

    async def _told_later(self, calls: Sequence[ToolCall], results: Sequence[Any]) -> Step:
        return self._told(calls, [await one if inspect.isawaitable(one) else one for one in results])

    def _told(self, calls: Sequence[ToolCall], texts: Sequence[str]) -> Step:
        before = self.counts["tool_calls"] - len(calls)
        messages = [
            {"role": "tool", "name": call.name or "unreadable", "tool_call_id": f"call{before + at:05d}", "content": text}
            for at, (call, text) in enumerate(zip(calls, texts, strict=True))
        ]  # nine letters and digits, which some templates ask for
        return Continue(messages=messages, info=dict(self.counts))

    def _text(self, result: Any) -> str:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=_as_text)
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair has no tokens
        over = len(text) - self.max_result_chars
        return text if over <= 0 else f"{text[: self.max_result_chars]}... ({over} more characters)"

    def _raised(self, error: BaseException) -> str:
        return self._error(RAISED, f"{type(error).__name__}: {error}")

    def _error(self, kind: str, sentence: str) -> str:
        self.counts[kind] += 1
        return self._text(f"error: {sentence}")


def _as_text(value: Any) -> str:
    """Of what JSON does not have: dates, decimals, numbers of numpy. A place in memory is no text: it is another one each time."""
    text = str(value)
    if " at 0x" in text:
        raise TypeError(f"it returned a {type(value).__name__}, which has no text")
    return text
