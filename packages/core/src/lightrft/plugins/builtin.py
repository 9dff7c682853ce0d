"""What does core itself bring? The reference strategy and engine, and the built-in rewards, estimators, losses and loggers."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins.hookspecs import hookimpl
from lightrft.plugins.specs import (
    AdvantageSpec,
    Capability,
    EngineSpec,
    LoggerSpec,
    PluginSpec,
    PolicyLossSpec,
    RewardSpec,
    StrategySpec,
)

HF_CAPABILITIES = frozenset(
    {
        Capability.LOGPROBS,
        Capability.SEED,
        Capability.SLEEP_1,
        Capability.SLEEP_2,
        Capability.MIN_P,
        Capability.MIN_NEW_TOKENS,
        Capability.TENSOR_PARALLEL,
        Capability.WEIGHT_SUMS,
    }
)
"""TENSOR_PARALLEL: one leader serves a group of any size; the model itself is not cut."""


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(name="single", target="lightrft.strategy.single:SingleStrategy", summary="one process, plain torch: the oracle"),
        EngineSpec(
            name="hf",
            target="lightrft.engine.hf:HFEngine",
            capabilities=HF_CAPABILITIES,
            topology="single_leader",
            summary="transformers with a KV cache: the oracle",
        ),
        RewardSpec(name="exact_match", target="lightrft.rewards.exact_match:exact_match", summary="1 if the answer is the reference"),
        RewardSpec(name="format", target="lightrft.rewards.format:format_reward", summary="1 for a body, then `#### number`, at the end"),
        RewardSpec(name="math", target="lightrft.rewards.math:math_reward", summary="1 if the answer equals the reference as mathematics"),
        AdvantageSpec(name="grpo", target="lightrft.algorithms.grpo:grpo", summary="reward minus its group's mean, over their deviation"),
        PolicyLossSpec(name="ppo_clip", target="lightrft.algorithms.ppo_clip:ppo_clip", summary="PPO's clipped ratio"),
        LoggerSpec(name="console", target="lightrft.trainer.loggers.console:ConsoleLogger", summary="a live table on rank 0"),
        LoggerSpec(name="jsonl", target="lightrft.trainer.loggers.jsonl:JsonlLogger", summary="metrics.jsonl in the log folder"),
    ]
