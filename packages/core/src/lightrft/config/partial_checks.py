"""Whether answers that go on in the next step go with the rest of the settings. What the settings say, before anything is imported."""

from __future__ import annotations

from collections.abc import Iterator

from lightrft.config.algorithm_checks import compares_with_greedy
from lightrft.config.ignored import is_given
from lightrft.config.schema import Config
from lightrft.plugins.registry import Registry

OTHERS = {
    "dynamic_sampling": "asks for further prompts by their rewards, which unfinished answers do not have",
    "reward_while_generating": "rewards answers as the engine ends them, and here it ends slices of them",
    "stop": "is looked for in what one call draws, and would be missed across two slices; use stop_token_ids",
    "min_new_tokens": "holds for one call to the engine, and an answer takes several",
}
"""Settings that do not go with it, with the reason."""

LARGEST_LAG = 64
"""Each lag is a metric of its own, and weights of so many updates ago say little about the present ones."""

FILTERS = ("temperature", "top_p", "top_k", "min_p")


def partial_problems(config: Config, registry: Registry) -> Iterator[str]:
    """One line for each problem of rollouts that leave answers unfinished."""
    lag, number = config.max_version_lag, config.oversample
    if not lag and number == 1:
        return
    if not lag:
        yield (
            f"oversample={number:g} starts more prompts than a step trains, whose answers go on under newer weights; "
            "set max_version_lag (1, or more), or leave oversample out"
        )
        return
    if number == 1:
        yield (
            f"max_version_lag={lag} lets answers go on in later steps, and with oversample=1 each step needs all that it starts; "
            "set oversample (1.5, at most 2), or leave max_version_lag out"
        )
    if lag > LARGEST_LAG:
        yield f"max_version_lag={lag} is more than {LARGEST_LAG}: set the number of updates that an answer may take, 1 to 4 as a rule"
    out = "leave it out, or max_version_lag and oversample"
    for name, why in OTHERS.items():
        if is_given(config, name):
            yield f"{name}={getattr(config, name)!r} does not go with max_version_lag={lag}: it {why}; {out}"
    for name in FILTERS:
        if is_given(config, name):
            yield (
                f"{name}={getattr(config, name)!r} does not go with max_version_lag={lag}: tokens of older weights are weighed by their "
                f"probabilities then and now, and engines tell those of the plain distribution; {out}"
            )
    if compares_with_greedy(config, registry):
        yield (
            f"advantage_estimator={config.advantage_estimator!r} compares with a greedy answer of the same weights, which "
            f"max_version_lag={lag} does not make; use grpo or another estimator of groups"
        )
