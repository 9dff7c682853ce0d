"""Reward functions written for other libraries, by a named adapter: `trl:PLACE`, `verl:PLACE`; PLACE is `module:function` or
`path/to/file.py:function`.

`trl`: `f(prompts=, completions=, **columns) -> list[float | None]` (TRL's GRPOTrainer, "Using a custom reward function").
`verl`: one sample at a time, `f(data_source=, solution_str=, ground_truth=, extra_info=) -> float | dict with "score"` (verl's
`custom_reward_function`), or all together, `f(data_sources=, solution_strs=, ground_truths=, extra_infos=) -> list` (its batch manager).
Each may be `async`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.errors import RewardError
from lightrft.rewards.calling import settled
from lightrft.types import Sample

Function = Callable[..., Any]
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
TRL, VERL = "trl", "verl"
GIVEN = ("prompt", "prompts", "completion", "completions")
"""Columns that a function of TRL's does not get as they stand in the rows."""
PLURAL = {"data_source": "data_sources", "solution_str": "solution_strs", "ground_truth": "ground_truths", "extra_info": "extra_infos"}
"""What verl's functions are given for one sample, and for all together."""


def adapted(function: Function, *, adapter: str, input_key: str) -> Callable[[Sequence[Sample]], list[Any]]:
    """A function of another library as one of ours. `input_key` is the column of the prompts.

    Raises:
        RewardError: it takes what that library does not give (of `trl` known once there are rows: see `OfTrl.lacking`).
    """
    if adapter == TRL:
        return OfTrl(function=function, input_key=input_key)
    assert adapter == VERL, adapter
    together = "solution_strs" in _parameters(function)
    _accepted(function, dict.fromkeys(PLURAL.values() if together else PLURAL))
    return lambda samples: _verl_together(function, samples) if together else _verl(function, samples)


def written_for(function: Function) -> str:
    """The adapter that a function's parameters ask for, or nothing."""
    parameters = _parameters(function)
    takes_columns = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if "completions" in parameters and (takes_columns or len(parameters) > 1):
        return TRL
    return VERL if parameters.keys() & {"solution_str", "solution_strs"} and len(parameters) > 1 else ""


def refusal(function: Any, *, input_key: str) -> str:
    """Why a script's object can be no reward, in words that follow its name; empty where it can."""
    if not callable(function):
        return f"is a {type(function).__name__}, not a function (samples) -> list of numbers"
    if adapter := written_for(function):
        given = f"lightrft.rewards.adapters.adapted(f, adapter={adapter!r}, input_key={input_key!r})"
        return f"has the parameters of a {adapter} reward function; give it as {given}"
    return misfit(function)


def misfit(function: Function) -> str:
    """Why a function cannot be called with the samples alone, in words; empty where it can."""
    if isinstance(function, type):
        return (
            "is a class, not a function (samples) -> list of numbers; where its objects are such functions, make one at the top of the "
            "file and name that"
        )
    try:
        inspect.signature(function).bind([])
    except TypeError:
        return f"takes {inspect.signature(function)}, and is called with one argument, the list of samples"
    except ValueError:  # some C functions have none
        pass
    return ""


@dataclass(frozen=True, kw_only=True)
class OfTrl:
    """A reward function of TRL as one of ours. `input_key` is the column of the prompts."""

    function: Function
    input_key: str

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        prompts = [_prompt(sample, self.input_key) for sample in samples]
        columns: dict[str, list[Any]] = {
            name: [sample.row.get(name) for sample in samples]
            for name in dict.fromkeys(name for sample in samples for name in sample.row)
            if name not in GIVEN
        }
        completions: list[Any] = [
            sample.completion if isinstance(prompt, str) else [{"role": "assistant", "content": sample.completion}]
            for prompt, sample in zip(prompts, samples, strict=True)
        ]
        columns["completion_ids"] = [list(sample.token_ids) for sample in samples]
        given = {**columns, "prompts": prompts, "completions": completions}
        found: list[Any] = settled(self.function(**_accepted(self.function, given)))
        return found

    def lacking(self, columns: Collection[str]) -> list[str]:
        """The parameters that rows of these columns leave without a value."""
        return _lacking(self.function, {*columns} - {*GIVEN} | {"completion_ids", "prompts", "completions"})


def _prompt(sample: Sample, input_key: str) -> Any:
    """The prompt as it stands in the data, text or messages, before template and tokens."""
    return sample.row.get(input_key) or sample.prompt


def _verl(function: Function, samples: Sequence[Sample]) -> list[Any]:
    answers = [function(**_accepted(function, _verl_arguments(sample))) for sample in samples]
    if any(inspect.isawaitable(answer) for answer in answers):
        answers = settled(_all(answers))
    return [_score(answer) for answer in answers]


def _verl_together(function: Function, samples: Sequence[Sample]) -> Any:
    each = [_verl_arguments(sample) for sample in samples]
    given = {plural: [one[name] for one in each] for name, plural in PLURAL.items()}
    answers: Any = settled(function(**_accepted(function, given)))
    listed = hasattr(answers, "__iter__") and not isinstance(answers, (str, bytes, Mapping))
    return [_score(answer) for answer in answers] if listed else answers  # what is no list is told by its caller


async def _all(answers: Sequence[Any]) -> list[Any]:
    """What the awaitable ones come to, all at once; the others as they are."""
    found = iter(await asyncio.gather(*(answer for answer in answers if inspect.isawaitable(answer))))
    return [next(found) if inspect.isawaitable(answer) else answer for answer in answers]


def _verl_arguments(sample: Sample) -> dict[str, Any]:
    graded = sample.row.get("reward_model")
    truth = graded.get("ground_truth") if isinstance(graded, Mapping) else None
    return {
        "data_source": sample.row.get("data_source"),
        "solution_str": sample.completion,
        "ground_truth": (list(sample.answers) or sample.answer) if truth is None else truth,
        "extra_info": sample.row.get("extra_info"),
    }


def _score(answer: Any) -> Any:
    if not isinstance(answer, Mapping):
        return answer
    if "score" not in answer:
        raise RewardError(f"a verl reward returned a dict without 'score' (keys: {', '.join(map(str, answer)) or 'none'})")
    return answer["score"]


def _accepted(function: Function, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes; all of them where it has `**kwargs` or does not say.

    Raises:
        RewardError: it needs another.
    """
    parameters = _parameters(function)
    if lacking := _lacking(function, arguments):
        raise RewardError(f"it takes {', '.join(map(repr, lacking))}, and is given {', '.join(map(repr, arguments))}")
    if not parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _lacking(function: Function, given: Collection[str]) -> list[str]:
    """The parameters without a default that are not given."""
    named = [(name, one) for name, one in _parameters(function).items() if one.kind in NAMED and one.default is one.empty]
    return [name for name, _ in named if name not in given]


def _parameters(function: Function) -> Mapping[str, inspect.Parameter]:
    """Empty where the function does not say."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some C functions
        return {}
