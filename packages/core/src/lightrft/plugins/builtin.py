"""The plugins of core itself: the reference strategy and engine, and the built-in rewards, estimators, losses and loggers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightrft.plugins.hookspecs import hookimpl
from lightrft.plugins.specs import (
    AdvantageSpec,
    Capability,
    EngineSpec,
    EnvironmentSpec,
    LoggerSpec,
    PluginSpec,
    PolicyLossSpec,
    RewardSpec,
    Runtime,
    StrategySpec,
)

HF_CAPABILITIES = frozenset(
    {
        Capability.LOGPROBS,
        Capability.SEED,
        Capability.SLEEP_1,
        Capability.SLEEP_2,
        Capability.MIN_P,
        Capability.MULTIMODAL,
        Capability.VIDEO,
        Capability.MIN_NEW_TOKENS,
        Capability.STOP_STRINGS,
        Capability.TENSOR_PARALLEL,
        Capability.WEIGHT_CHECKSUMS,
        Capability.ADAPTERS,
    }
)
"""TENSOR_PARALLEL: one leader serves a group of any size; the model itself is not sharded."""


def _advantage(name: str, summary: str, *, file: str = "", **facts: Any) -> AdvantageSpec:
    facts = {"reads": frozenset(), **facts}
    return AdvantageSpec(name=name, target=f"lightrft.algorithms.{file or name}:{name}", summary=summary, **facts)


def _policy_loss(name: str, summary: str, *, file: str = "", reads: Sequence[str] = (), **facts: Any) -> PolicyLossSpec:
    target = f"lightrft.algorithms.{file or name}:{name}"
    return PolicyLossSpec(name=name, target=target, summary=summary, reads=frozenset({*CLIP, *reads}), **facts)


CLIP = ("eps_clip", "eps_clip_low", "eps_clip_high")
ADVANTAGES = (
    _advantage("gae", "PPO's, from a critic's values", critic=True, reads=frozenset({"gamma", "lambd", "turn_credit"})),
    _advantage("grpo", "reward minus its group's mean, over their deviation", min_samples=2),
    _advantage("dr_grpo", "reward minus its group's mean", min_samples=2),
    _advantage("rloo", "reward minus the mean of the group's others", min_samples=2),
    _advantage("reinforce_pp", "returns, standardised over the whole batch", reads=frozenset({"gamma", "turn_credit"})),
    _advantage(
        "reinforce_pp_baseline",
        "the same after the group's mean was subtracted",
        file="reinforce_pp",
        min_samples=2,
        reads=frozenset({"gamma", "turn_credit"}),
    ),
    _advantage("opo", "reward minus its group's length-weighted mean", min_samples=2),
    _advantage("remax", "reward minus that of the prompt's greedy completion", greedy=True),
)
GSPO_PAPER: dict[str, Any] = {
    "sequence_ratio": True, "eps_clip_low": 3e-4, "eps_clip_high": 4e-4, "loss_aggregation": "sequence_mean",
}  # fmt: skip
POLICY_LOSSES = (
    _policy_loss("ppo_clip", "PPO's clipped ratio, with clip-higher and dual clip", reads=("dual_clip",)),
    _policy_loss("gspo", "clipped ratio of whole completions", **GSPO_PAPER),
    _policy_loss("gspo_token", "the same with gradients and advantages of tokens", file="gspo", **GSPO_PAPER),
    _policy_loss("cispo", "REINFORCE with clipped importance weights", eps_clip_low=1.0),  # no bound below
    _policy_loss("cpgd", "clipped log-ratio and a penalty for drift", settings="lightrft.algorithms.cpgd_settings:CPGDSettings"),
    _policy_loss(
        "gmpo",
        "geometric mean of clipped token ratios",
        sequence_ratio=True,
        eps_clip_low=1 - math.exp(-0.4),
        eps_clip_high=math.exp(0.4) - 1,
        loss_aggregation="sequence_mean",
    ),
)

REWARDS = (
    RewardSpec(
        name="code",
        target="lightrft.rewards.code:code_reward",
        runs_code=True,
        summary="1 if the program passes the tests in `answer`",
    ),
    RewardSpec(
        name="environment", target="lightrft.rewards.environment:environment_reward", summary="what the environment gave in all turns"
    ),
    RewardSpec(name="exact_match", target="lightrft.rewards.exact_match:exact_match", summary="1 if the answer is the reference"),
    RewardSpec(name="format", target="lightrft.rewards.format:format_reward", summary="1 for a body, then `#### number`, at the end"),
    RewardSpec(
        name="math",
        target="lightrft.rewards.math:math_reward",
        runtime=Runtime(distributions=("math-verify",), versions=">=0.8", extra="math"),
        summary="1 if the answer equals the reference as mathematics",
    ),
)
ENVIRONMENTS = (
    EnvironmentSpec(
        name="single_turn",
        target="lightrft.rollout.environment:SingleTurn",
        summary="an episode is one completion: no environment",
    ),
    EnvironmentSpec(
        name="guess_number",
        target="lightrft.rollout.guess_number:GuessNumber",
        summary="guess the number in `answer`, told lower or higher",
    ),
    EnvironmentSpec(
        name="gridworld", target="lightrft.rollout.gridworld:Gridworld", summary="move from `start` to `goal` on a square of fields"
    ),
    EnvironmentSpec(
        name="gymnasium",
        target="lightrft.rollout.gymnasium_texts:GymnasiumTexts",
        runtime=Runtime(distributions=("gymnasium",), versions=">=1.0,<2", extra="gymnasium"),
        summary="an environment of gymnasium whose observations are texts",
    ),
    EnvironmentSpec(
        name="python",
        target="lightrft.rollout.python_tool:PythonTool",
        runs_code=True,
        summary="a tool that runs Python programs and tells their output",
    ),
)


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(
            name="single",
            target="lightrft.strategy.single:SingleStrategy",
            capabilities=frozenset({Capability.OPTIMIZER_OFFLOAD, Capability.FROZEN_OFFLOAD, Capability.BF16}),
            summary="one process, plain torch: the oracle",
        ),
        EngineSpec(
            name="hf",
            target="lightrft.engine.hf:HFEngine",
            capabilities=HF_CAPABILITIES,
            topology="single_leader",
            summary="transformers with a KV cache: the oracle",
        ),
        *REWARDS,
        *ENVIRONMENTS,
        *ADVANTAGES,
        *POLICY_LOSSES,
        LoggerSpec(name="console", target="lightrft.run.loggers.console:ConsoleLogger", summary="a live table on rank 0"),
        LoggerSpec(
            name="tensorboard",
            target="lightrft.run.loggers.tensorboard:TensorBoardLogger",
            runtime=Runtime(distributions=("tensorboard",), versions=">=2.18,<3", extra="tensorboard"),
            summary="scalars for TensorBoard in the log folder",
        ),
        LoggerSpec(
            name="wandb",
            target="lightrft.run.loggers.wandb:WandbLogger",
            runtime=Runtime(distributions=("wandb",), versions=">=0.19,<1", extra="wandb"),
            summary="Weights & Biases, also offline (WANDB_MODE)",
        ),
        LoggerSpec(
            name="trackio",
            target="lightrft.run.loggers.trackio:TrackioLogger",
            runtime=Runtime(distributions=("trackio",), versions=">=0.43,<1", extra="trackio"),
            summary="trackio, a local dashboard (trackio show)",
        ),
        LoggerSpec(
            name="mlflow",
            target="lightrft.run.loggers.mlflow:MlflowLogger",
            runtime=Runtime(distributions=("mlflow-skinny", "mlflow"), versions=">=3,<4", extra="mlflow"),
            summary="MLflow, a server (MLFLOW_TRACKING_URI) or a database in the log folder",
        ),
        LoggerSpec(
            name="swanlab",
            target="lightrft.run.loggers.swanlab:SwanlabLogger",
            runtime=Runtime(distributions=("swanlab",), versions=">=0.10,<1", extra="swanlab"),
            summary="SwanLab, also offline (SWANLAB_MODE)",
        ),
        LoggerSpec(
            name="prometheus",
            target="lightrft.run.loggers.prometheus:PrometheusLogger",
            summary="metrics.prom for a textfile collector; a port on loopback with LIGHTRFT_PROMETHEUS_PORT",
        ),
        LoggerSpec(name="jsonl", target="lightrft.run.loggers.jsonl:JsonlLogger", summary="metrics.jsonl in the log folder"),
    ]
