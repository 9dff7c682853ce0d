"""What a plugin says about itself: frozen specs: a name, where the code is, what it can do. No work, no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal

ENTRY_POINT_GROUP = "lightrft.plugins"


class Capability(StrEnum):
    """Optional behaviour that a plugin declares; core refuses at start what the chosen plugin does not declare.

    `meaning` says in words what a plugin that declares it can do.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Capability:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    # engines
    TENSOR_PARALLEL = "tensor_parallel", "one engine serves a group of several ranks (`engine_tp_size`)"
    MULTIMODAL = "multimodal", "prompts with images"
    VIDEO = "video", "prompts with videos"
    LOGPROBS = "logprobs", "the log-probability of each sampled token, for the requests that ask"
    SEED = "seed", "a request's seed fixes its draws, whatever else is in the batch"
    SLEEP_1 = "sleep_1", "asleep, the weights wait in host memory"
    SLEEP_2 = "sleep_2", "asleep, the weights are dropped: a sync brings them again"
    MEM_UTIL = "mem_util", "`engine_mem_util` bounds its fraction of the device's memory"
    MIN_P = "min_p", "drops tokens much less likely than the likeliest"
    MIN_NEW_TOKENS = "min_new_tokens", "no stop token before so many tokens"
    STOP_STRINGS = "stop_strings", "a text ends a completion"
    WEIGHT_CHECKSUMS = "weight_checksums", "checksums of the tensors that it holds, which verify a sync"
    ADAPTERS = "adapters", "is given low-rank adapters alone at a sync, and keeps the base weights (`lora_sync`)"
    DETERMINISTIC = "deterministic", "a completion depends on nothing else in its batch, to the last bit (`deterministic_rollout`)"
    STEPPING = "stepping", "a request that is started while others run joins them (`start`, `poll`): the next turn of an episode"
    # strategies
    MULTI_RANK = "multi_rank", "more than one rank"
    ZERO_STAGES = "zero_stages", "ZeRO's stages 0 to 3"
    ADAM_OFFLOAD = "adam_offload", "AdamW runs in host memory"
    OPTIMIZER_OFFLOAD = "optimizer_offload", "the optimizer's state leaves the device between updates"
    RESHARD_POLICY = "reshard_policy", "parameters may stay gathered for a whole step"
    BF16 = "bf16", "computes in bfloat16 over float32 masters"
    MIXED_PRECISION_OPTIMIZER = "mixed_precision_optimizer", "holds bfloat16 parameters; the optimizer has the float32 masters"
    SHARDED_FROZEN = "sharded_frozen", "neighbouring ranks share one copy of a frozen model"
    FROZEN_OFFLOAD = "frozen_offload", "a frozen model is one whose parameters torch can move: it rests in host memory between passes"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The library that a plugin drives, where it is an extra of the plugin: checked before anything is imported.

    `distributions` are the names under which it is published (one of them is enough), `versions` is a version specifier, `>=0.25,<0.33`.
    """

    distributions: tuple[str, ...]
    versions: str
    extra: str = "runtime"
    """The extra of the plugin's distribution that brings it."""


_PLAIN: tuple[tuple[str, str, tuple[type, ...]], ...] = (
    ("name", "a str", (str,)),
    ("target", "a str of the form 'package.module:attribute'", (str,)),
    ("settings", "a str of the form 'package.module:attribute'", (str,)),
    ("capabilities", "a frozenset of Capability", (frozenset,)),
    ("runtime", "a Runtime or None", (Runtime, type(None))),
    ("summary", "a str", (str,)),
)


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """Base of all specs. `target` is `package.module:attribute`, imported on first use.

    `settings` is `package.module:attribute` of a subclass of `lightrft.plugins.settings.PluginSettings`, for a plugin that brings settings
    (`NAME.SETTING`); its module is imported to list and check settings, so it should import neither torch nor the plugin's library.

    `api` is the number (`lightrft.plugins.API_VERSION`) that the plugin was written for, as a literal: it says nothing about the lightrft
    that happens to be installed.
    """

    kind: ClassVar[str]
    name: str
    target: str
    api: int = 1
    capabilities: frozenset[Capability] = frozenset()
    runtime: Runtime | None = None
    summary: str = ""
    settings: str = ""

    def __post_init__(self) -> None:
        for capability in self.capabilities if isinstance(self.capabilities, Collection) else ():
            if not isinstance(capability, Capability):
                raise ValueError(f"plugin {self.name!r}: {capability!r} is not a Capability (known: {', '.join(Capability)})")
        for name, what, kinds in _PLAIN:
            if not isinstance(value := getattr(self, name), kinds):
                raise ValueError(f"plugin {self.name!r}: {name} is {value!r}, which is not {what}")
        if not self.name or self.name != self.name.strip():
            raise ValueError(f"plugin name {self.name!r} is empty or has spaces around it")
        for name in ("target", "settings") if self.settings else ("target",):
            if (path := getattr(self, name)).count(":") != 1 or not all(path.split(":")):
                raise ValueError(f"plugin {self.name!r}: {name} {path!r} is not of the form 'package.module:attribute'")
        if type(self.api) is not int:
            raise ValueError(f"plugin {self.name!r}: api {self.api!r} is not an int")


@dataclass(frozen=True, kw_only=True)
class StrategySpec(PluginSpec):
    """A training backend; the target is a subclass of `lightrft.strategy.strategy_base.StrategyBase`."""

    kind: ClassVar[str] = "strategy"


@dataclass(frozen=True, kw_only=True)
class EngineSpec(PluginSpec):
    """An inference engine; the target is a subclass of `lightrft.engine.base.InferenceEngine`.

    `topology`: a `single_leader` engine lives on the first rank of its group; an `spmd` engine on every rank, called with the same input.
    `cuda_only`: those of its capabilities that it lacks without a CUDA device. `cuts_heads`: tensor parallelism divides the attention
    heads among the ranks of a group. `cpu_head_sizes`: the sizes of a head that it can do on the CPU; empty: any.
    `cpu_latent_sizes`: the same of a latent (DeepSeek's attention keeps one in place of heads: kv_lora_rank + qk_rope_head_dim).
    `lora_sync`: which of the two ways of `Config.lora_sync` costs it less; `max_adapter_rank`: the largest rank of an adapter that it can
    be given under the capability `adapters`; 0: any.
    `why_not`: why it does not declare a capability that one would expect of it, in a few words; a run that needs it is told.
    `options`: `package.module:function` that returns `lightrft.plugins.engine_options.EngineOptions`, for an engine that takes
    `engine_args`; it is imported where a run sets some, and should import neither torch nor the engine's library.
    """

    kind: ClassVar[str] = "engine"
    topology: Literal["single_leader", "spmd"] = "single_leader"
    cuda_only: frozenset[Capability] = frozenset()
    cuts_heads: bool = False
    cpu_head_sizes: frozenset[int] = frozenset()
    cpu_latent_sizes: frozenset[int] = frozenset()
    lora_sync: Literal["adapters", "merged"] = "merged"
    max_adapter_rank: int = 0
    why_not: Mapping[Capability, str] = field(default_factory=dict, hash=False)
    options: str = ""

    def capabilities_on(self, device_type: str) -> frozenset[Capability]:
        """What it can do on `cpu` or `cuda`."""
        return self.capabilities if device_type == "cuda" else self.capabilities - self.cuda_only

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options and (self.options.count(":") != 1 or not all(self.options.split(":"))):
            raise ValueError(f"plugin {self.name!r}: options {self.options!r} is not of the form 'package.module:function'")
        if not isinstance(self.cuda_only, frozenset):
            raise ValueError(f"plugin {self.name!r}: cuda_only is {self.cuda_only!r}, which is not a frozenset of Capability")
        if not self.cuda_only <= self.capabilities:
            more = ", ".join(sorted(self.cuda_only - self.capabilities))
            raise ValueError(f"plugin {self.name!r}: cuda_only names what capabilities does not: {more}")
        if both := sorted(self.capabilities.intersection(self.why_not)):
            raise ValueError(f"plugin {self.name!r}: why_not names {str(both[0])!r}, which it declares")
        if self.lora_sync == "adapters" and Capability.ADAPTERS not in self.capabilities:
            raise ValueError(f"plugin {self.name!r}: lora_sync 'adapters' without the capability 'adapters'")
        if self.topology not in ("single_leader", "spmd"):
            raise ValueError(f"plugin {self.name!r}: topology {self.topology!r} is not one of 'single_leader', 'spmd'")


@dataclass(frozen=True, kw_only=True)
class RewardSpec(PluginSpec):
    """A reward; the target is a function `(samples: Sequence[Sample]) -> Sequence[float | None]`.

    `runs_code`: it runs programs that the model wrote; a run without `allow_code_execution` refuses it at its start.
    """

    kind: ClassVar[str] = "reward"
    runs_code: bool = False


ADVANTAGE_SETTINGS = ("gamma", "lambd", "turn_credit")
CRITIC_SETTINGS = ("critic_model_name_or_path", "critic_learning_rate", "critic_warmup_steps", "value_clip")
LOSS_SETTINGS = ("eps_clip", "eps_clip_low", "eps_clip_high", "dual_clip")
"""Settings that reach estimators and losses, each of which reads some."""


@dataclass(frozen=True, kw_only=True)
class AdvantageSpec(PluginSpec):
    """An advantage estimator; the target is a function `(AdvantageInput) -> Advantages`.

    `critic`: it reads `values` and gives `returns`, so a critic is trained beside the actor. `greedy`: it reads `baselines`, so a greedy
    completion of each prompt is generated and rewarded. `min_samples`: completions that a prompt needs for it to say anything. `reads`:
    the settings of `ADVANTAGE_SETTINGS` that it reads; others are refused as without effect. None: not declared, nothing is refused.
    """

    kind: ClassVar[str] = "advantage"
    critic: bool = False
    greedy: bool = False
    min_samples: int = 1
    reads: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyLossSpec(PluginSpec):
    """A policy loss; the target is a function `(PolicyLossInput) -> PolicyLoss`.

    `sequence_ratio`: it compares whole completions, and cannot be weighted token by token. `reads`: the settings of `LOSS_SETTINGS` that it
    reads; others are refused as without effect. None: not declared, nothing is refused. `eps_clip_low`, `eps_clip_high`,
    `loss_aggregation`: those of its paper, for settings that say nothing.
    """

    kind: ClassVar[str] = "policy_loss"
    sequence_ratio: bool = False
    reads: frozenset[str] | None = None
    eps_clip_low: float = 0.2
    eps_clip_high: float = 0.2
    loss_aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.eps_clip_low <= 1 and self.eps_clip_high > 0):
            bounds = f"eps_clip_low={self.eps_clip_low}, eps_clip_high={self.eps_clip_high}"
            raise ValueError(f"plugin {self.name!r}: {bounds} are no bounds of a ratio; both are above 0, the first at most 1")
        if self.loss_aggregation not in ("token_mean", "sequence_mean", "constant"):
            raise ValueError(f"plugin {self.name!r}: loss_aggregation {self.loss_aggregation!r} is not one of the setting's values")


@dataclass(frozen=True, kw_only=True)
class LoggerSpec(PluginSpec):
    """A logger; the target is a class with the methods of `lightrft.run.loggers.Logger`."""

    kind: ClassVar[str] = "logger"


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec(PluginSpec):
    """An environment of episodes; the target is a subclass of `lightrft.rollout.environment.Environment`.

    `runs_code`: as of a reward; the class says it, too.
    """

    kind: ClassVar[str] = "environment"
    runs_code: bool = False


SPEC_TYPES: tuple[type[PluginSpec], ...] = (
    StrategySpec, EngineSpec, RewardSpec, EnvironmentSpec, AdvantageSpec, PolicyLossSpec, LoggerSpec,
)  # fmt: skip
