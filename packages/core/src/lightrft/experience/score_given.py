"""`lightrft.score`: rewards tried on rows from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightrft.config.load import make_config
from lightrft.config.reward_checks import check_rewards
from lightrft.config.reward_names import called, model_folder
from lightrft.data.rows import Table
from lightrft.errors import ConfigError
from lightrft.experience.offline import samples_in, score_samples
from lightrft.plugins.registry import Registry
from lightrft.rewards.adapters import refusal
from lightrft.rewards.load import NamedReward, rewards_of


def score(
    rows: Iterable[Mapping[str, Any]], *, rewards: Sequence[str | Callable[..., Any]], weights: Sequence[float] = (), **settings: Any
) -> list[dict[str, Any]]:
    """Rewards of completions that exist: for each row, in order, `{"reward": weighted sum, "parts": {name: number or None}}`. Local.

    `rows` are mappings with `prompt`, `completion` and, where a reward needs it, `answer`. `rewards` are names as in the setting `reward`
    ("math", "my_rewards.py:short"), or functions of a list of samples; `weights` one number for each, 1 unless given. `settings` are
    those of rewards (`allow_code_execution`, `reward_timeout_s` ...).

    Raises:
        ConfigError: settings or rewards that cannot work, rows that are no samples.
        RewardError: a reward failed; where one row alone makes it fail, the message begins with its place.

    Example::

        >>> import lightrft
        >>> row = {"prompt": "6 x 7 =", "completion": "It is 42.", "answer": "42"}
        >>> lightrft.score([row], rewards=["math", lambda samples: [float(len(s.completion)) for s in samples]], weights=[1.0, 0.1])
        [{'reward': 1.9, 'parts': {'math': 1.0, 'function_1': 9.0}}]
    """
    named = [one for one in rewards if isinstance(one, str)]
    names = iter(map(called, named))
    called_so = [next(names) if isinstance(one, str) else _called(one, at) for at, one in enumerate(rewards)]
    config, registry = make_config({**settings, "reward": named}), Registry.discover()
    if problems := [*_unfit(rewards, weights, called_so), *(check_rewards(config, registry=registry) if named else [])]:
        raise ConfigError(problems)
    loaded = iter(rewards_of(config, registry=registry))
    asked = [
        replace(next(loaded), weight=weight)
        if isinstance(one, str)
        else NamedReward(name=name, function=one, weight=weight, may_run_code=config.allow_code_execution)
        for one, name, weight in zip(rewards, called_so, weights or [1.0] * len(rewards), strict=True)
    ]
    table = Table(path="rows", rows=[dict(row) for row in rows])
    scores = score_samples(samples_in(table), table=table, rewards=asked, reward_key=config.reward_key)
    parts = [dict(zip(scores.parts, values, strict=True)) for values in zip(*scores.parts.values(), strict=True)]
    return [{"reward": total, "parts": part} for total, part in zip(scores.total, parts, strict=True)]


def _unfit(rewards: Sequence[Any], weights: Sequence[float], names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the arguments, a line each."""
    if not rewards:
        yield "rewards is empty; give at least one name or function"
    if weights and len(weights) != len(rewards):
        yield f"weights={list(weights)!r} has {len(weights)} numbers for {len(rewards)} rewards; give one for each"
    for at, one in enumerate(rewards):
        if not isinstance(one, str) and (problem := refusal(one, input_key="prompt")):
            yield f"rewards[{at}]={getattr(one, '__name__', one)!r:.60} {problem}"
        if isinstance(one, str) and model_folder(one):
            yield f"rewards[{at}]={one!r} is a model; `lightrft score` loads reward models"
    functions = {name for one, name in zip(rewards, names, strict=True) if not isinstance(one, str)}  # `check_rewards` tells the others
    for name in sorted(name for name in functions if names.count(name) > 1):
        yield f"two rewards are called {name!r}; give one another name (name=file.py:function, or the function's own)"


def _called(function: Callable[..., Any], at: int) -> str:
    name = getattr(function, "__name__", "<lambda>")
    return f"function_{at}" if name == "<lambda>" else name
