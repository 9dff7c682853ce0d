"""Reward functions written for other libraries, by a named adapter: `trl:PLACE`, `verl:PLACE`; PLACE is `module:function` or
`path/to/file.py:function`.

`trl`: `f(prompts=, completions=, **columns) -> list[float | None]` (TRL's GRPOTrainer, "Using a custom reward function").
`verl`: one sample at a time, `f(data_source=, solution_str=, ground_truth=, extra_info=) -> float | dict with "score"` (verl's
`custom_reward_function`). Either may be `async`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from lightrft.errors import RewardError
from lightrft.rewards.calling import settled
from lightrft.types import Sample

Function = Callable[..., Any]
TRL, VERL = "trl", "verl"


def adapted(function: Function, *, adapter: str, input_key: str) -> Callable[[Sequence[Sample]], list[Any]]:
    """A function of another library as one of ours. `input_key` is the column of the prompts."""
    if adapter == TRL:
        return lambda samples: _trl(function, samples, input_key=input_key)
    assert adapter == VERL, adapter
    return lambda samples: _verl(function, samples)


def written_for(function: Function) -> str:
    """The adapter that a function's parameters ask for, or nothing."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some C functions have none
        return ""
    takes_columns = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if "completions" in parameters and (takes_columns or "prompts" in parameters):
        return TRL
    return VERL if "solution_str" in parameters and len(parameters) > 1 else ""


def _trl(function: Function, samples: Sequence[Sample], *, input_key: str) -> list[Any]:
    prompts = [_prompt(sample, input_key) for sample in samples]
    columns: dict[str, list[Any]] = {
        name: [sample.row.get(name) for sample in samples]
        for name in dict.fromkeys(name for sample in samples for name in sample.row)
        if name not in (input_key, "prompt", "prompts", "completion", "completions")
    }
    completions: list[Any] = [
        sample.completion if isinstance(prompt, str) else [{"role": "assistant", "content": sample.completion}]
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    columns["completion_ids"] = [list(sample.token_ids) for sample in samples]
    given = _accepted(function, {**columns, "prompts": prompts, "completions": completions})
    found: list[Any] = settled(function(**given))
    return found


def _prompt(sample: Sample, input_key: str) -> Any:
    """The prompt as it stands in the data, text or messages, before template and tokens."""
    return sample.row.get(input_key) or sample.prompt


def _verl(function: Function, samples: Sequence[Sample]) -> list[Any]:
    answers = [function(**_accepted(function, _verl_arguments(sample))) for sample in samples]
    if any(inspect.isawaitable(answer) for answer in answers):
        answers = settled(_all(answers))
    return [_score(answer) for answer in answers]


async def _all(answers: Sequence[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*answers))


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
    """Those of the arguments that the function takes; all of them where it has `**kwargs` or does not say."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return arguments
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}
