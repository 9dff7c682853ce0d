"""Whether this environment can be had, and goes with the rest: what the settings say, before anything is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightrft.config.algorithm_checks import compares_with_greedy
from lightrft.config.schema import Config
from lightrft.errors import PluginError
from lightrft.plugins.registry import Registry


def environment_problems(config: Config, registry: Registry) -> Iterator[str]:
    """One line for each problem of the settings of episodes."""
    name = config.environment
    if not name:
        if "environment" in config.reward:
            yield "reward='environment' gives what an environment gave, and environment is not set; set it, or leave the reward out"
        if config.turn_credit == "turn":
            yield "turn_credit='turn' is of rewards of an environment, and environment is not set; set it, or leave turn_credit out"
        return
    yield from _found(name, registry)
    yield from _together(config, registry)
    if config.turn_max_len > config.generate_max_len:
        yield f"turn_max_len={config.turn_max_len} is more than generate_max_len={config.generate_max_len}, which bounds the whole episode"
    turn = config.turn_max_len or config.generate_max_len // config.max_turns
    if not turn:
        yield (
            f"generate_max_len={config.generate_max_len} bounds the whole episode, and leaves no token for each of max_turns="
            f"{config.max_turns} turns; raise it, lower max_turns, or set turn_max_len"
        )
    elif config.min_new_tokens > turn:
        yield f"min_new_tokens={config.min_new_tokens} is more than a turn may have, {turn} tokens; lower it, or raise turn_max_len"


def _found(name: str, registry: Registry) -> Iterator[str]:
    if ":" not in name:
        try:
            registry.entry("environment", name)
        except PluginError as error:
            yield str(error)
        return
    path, _, target = name.rpartition(":")
    if path.endswith(".py") and not Path(path).is_file():
        yield f"environment={name!r}: no such file {path!r}; the form is path/to/file.py:Class"
    elif not (path and target):
        yield f"environment={name!r} is not of the form module:Class or path/to/file.py:Class"


def _together(config: Config, registry: Registry) -> Iterator[str]:
    """What does not go with episodes of several turns."""
    name = config.environment
    if config.reward_while_generating:
        yield f"reward_while_generating=True rewards completions, and environment={name!r} makes episodes of them; leave one of them out"
    if config.sft_target_reward:
        yield (
            f"sft_target_reward={config.sft_target_reward} is measured on single completions, and environment={name!r} makes episodes; "
            "set it to 0"
        )
    if config.rewritten_turns == "split" and not config.apply_chat_template:
        yield "rewritten_turns='split' is of turns that a chat template writes; set --apply_chat_template, or leave rewritten_turns out"
    if config.rewritten_turns == "split" and config.tools_key:
        yield (
            "rewritten_turns='split' writes conversations anew, with the tools of the environment, and "
            f"tools_key={config.tools_key!r} names others; leave one of them out"
        )
    if config.turn_credit == "turn":
        yield from _turn_credit(config)
    if compares_with_greedy(config, registry):
        yield (
            f"advantage_estimator={config.advantage_estimator!r} compares with a greedy completion, which environment={name!r} "
            "does not make; use grpo or another estimator of groups"
        )


def _turn_credit(config: Config) -> Iterator[str]:
    """What keeps rewards of turns from standing at their turns."""
    if "environment" not in config.reward:
        yield "turn_credit='turn' puts the reward `environment` where it was earned; name it in reward, or leave turn_credit out"
    for name, why in (("normalize_rewards", "changes sums of rewards"), ("reward_key", "says for each row which rewards count")):
        if getattr(config, name):
            yield f"{name}={getattr(config, name)!r} {why}, and turn_credit='turn' takes them apart; leave one of them out"
