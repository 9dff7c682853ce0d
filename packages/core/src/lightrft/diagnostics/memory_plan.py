"""What a run will hold on one rank's device, phase by phase, from its settings and the shapes of its models: before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

from lightrft.config.checks import compile_problem, strategy_name
from lightrft.config.schema import Config
from lightrft.diagnostics.dry_passes import DryModel, Peaks, Rows, forward_peak, peaks
from lightrft.diagnostics.memory_parts import FLOAT, HOLDS, Held, Sizes, frozen_bytes, held, pass_bytes
from lightrft.errors import ConfigError

MIB, GIB = 2**20, 2**30
GPUS = {
    "a100-40g": 39.4, "a100-80g": 79.2, "h100-80g": 79.1, "h200-141g": 139.8, "l40s-48g": 44.4, "rtx4090-24g": 23.5,
}  # fmt: skip
"""GiB that a program can use of each."""

CUDA_CONTEXT = int(0.6 * GIB)
ENGINE_ASLEEP = int(1.2 * GIB)
"""Of an engine library with sleep mode, CUDA's context included: measured with vLLM, 1.15 GiB."""

ENGINE_BESIDE = 4 * GIB
"""That vLLM holds awake beside its fraction, its graphs among it: measured at 1.5 B parameters, 4 to 10 GiB."""

TORCH_CACHE = 0.4
"""What torch's allocator keeps beside the tensors of a pass, as a fraction of them: measured in updates on H100 and H200, 0.3 to 0.9."""

COMPILED = 0.64
"""Fraction of a block's activations that is left when it is compiled: measured on one H100 (7.3 GiB for 11.2, weights taken off)."""

SHARING = ("vllm", "sglang")
"""Engines that take `engine_mem_util` of the device."""

ENGINES = ("hf", *SHARING)


@dataclass(frozen=True, kw_only=True)
class Models:
    """Shapes of a run's models. `kv_elements`: of one token in a KV cache; `rewards`: parameters of each reward model; `critic`: of the
    critic, where it has others than the actor.
    """

    actor: DryModel
    kv_elements: int
    has_critic: bool = False
    critic: int | None = None
    rewards: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on one rank: `phases` by phase and part; `device` is what there is. `kv_cache` is the least that an engine has for it, and
    `kv_needed` what one sequence takes. `host`: by part, what the settings put into the host's memory for this rank.
    """

    phases: Mapping[str, Mapping[str, int]]
    device: int
    kv_cache: int
    kv_needed: int
    host: Mapping[str, int] = field(default_factory=dict)

    def total(self, phase: str) -> int:
        """Of one phase."""
        return sum(self.phases[phase].values())

    @property
    def fullest(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=self.total)

    @property
    def fits(self) -> bool:
        """Whether every phase does, and the engine can hold one sequence."""
        return self.total(self.fullest) <= self.device and self.kv_cache >= self.kv_needed


def make_plan(config: Config, models: Models, *, world: int, device: int, cuda: bool = True) -> Plan:
    """The plan for one rank of `world`, on a device with so many bytes. Every row is as long as the settings allow.

    Raises:
        ConfigError: a strategy or an engine whose memory is not known.
    """
    if problems := [*_unknown(config)]:
        raise ConfigError(problems)
    return _Planner(config, models, world, device, cuda).plan()


def _unknown(config: Config) -> Iterator[str]:
    if strategy_name(config) not in HOLDS:
        yield f"strategy {strategy_name(config)!r}: a plan knows what {', '.join(HOLDS)} hold; plan for one of them"
    if config.engine_type not in ENGINES:
        yield f"engine_type {config.engine_type!r}: a plan knows what {', '.join(ENGINES)} hold; plan for one of them"


@cache
def _peaks(dry: DryModel, rows: Rows, dtype: torch.dtype, chunk: int | None, recompute: bool, each: float) -> Peaks:
    return peaks(dry, rows, dtype=dtype, chunk=chunk, recompute=recompute, keeps=lambda p: int(each * p.numel()))


@cache
def _forward(dry: DryModel, rows: Rows, dtype: torch.dtype, chunk: int | None) -> int:
    return forward_peak(dry, rows, dtype=dtype, chunk=chunk)


@dataclass(frozen=True)
class _Planner:
    config: Config
    models: Models
    world: int
    device: int
    cuda: bool

    def plan(self) -> Plan:
        engine, asleep, mine = self._engine(), self._asleep(), self._held()
        phases = {"rollout": self._resident() | engine}
        beside = asleep if self._sleeps else {name: size for name, size in engine.items() if name != "KV cache" or self._shares_gpu}
        phases |= {name: self._resident() | parts | beside for name, parts in self._passes().items()}
        if "reward pass" in phases and self.config.dynamic_sampling:
            phases["reward pass"] |= engine  # it stays awake until enough groups have a signal, and each try is rewarded
        awake = {"engine weights": engine["engine weights"], **asleep}
        largest = min(self.config.weight_bucket_mb * MIB, pass_bytes(self.config) * self.models.actor.total)
        buckets = {"buckets of the sync": int(mine.copies * largest)}
        phases["sync"] = self._resident() | buckets | (awake if self._sleeps else beside)
        if self.cuda and "engine, asleep" not in asleep:
            phases = {name: parts | {"CUDA": CUDA_CONTEXT} for name, parts in phases.items()}
        shown = {name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()}
        sequence = self._kv(1)
        return Plan(phases=shown, device=self.device, kv_cache=engine["KV cache"], kv_needed=sequence, host=self._host())

    # what stays

    def _resident(self) -> dict[str, int]:
        config, mine = self.config, self._held()
        found = {"weights": mine.weights, "optimizer": 0 if mine.offloaded else mine.optimizer, "kept by the backend": mine.always}
        found["gradients"] = mine.gradients if mine.keeps_gradients else 0
        if self.models.has_critic:
            critic = self._held_by_critic()
            found["critic"] = critic.weights + critic.always + (0 if critic.offloaded else critic.optimizer)
        if config.ema_beta:
            found["average"] = FLOAT * self.models.actor.total // (1 if strategy_name(config) == "single" else self.world)
        return found if config.offload_frozen else found | self._reference() | self._rewards()

    def _reference(self) -> dict[str, int]:
        return {"reference": frozen_bytes(self.config, self.models.actor.total, world=self.world)} if self.config.kl_coef else {}

    def _rewards(self) -> dict[str, int]:
        shard = self.config.reward_shard_size
        sizes = self.models.rewards.items()
        return {f"reward {name}": frozen_bytes(self.config, size, world=self.world, shard=shard) for name, size in sizes}

    def _host(self) -> dict[str, int]:
        """Optimizers and frozen models that rest there, and an engine's weights while it sleeps at level 1."""
        config = self.config
        found = {"optimizer": self._held().on_host}
        if self.models.has_critic:
            found["critic's optimizer"] = self._held_by_critic().on_host
        if config.offload_frozen:
            found |= self._reference() | self._rewards()
        if config.engine_type in SHARING and config.enable_engine_sleep and config.engine_sleep_level == 1:
            found["engine weights, asleep"] = pass_bytes(config) * self.models.actor.total // config.engine_tp_size
        return {part: size for part, size in found.items() if size}

    def _held(self) -> Held:
        actor = self.models.actor
        return self._held_of(actor.total, trained=actor.trained, largest=actor.largest)

    def _held_by_critic(self) -> Held:
        """Trained whole, also beside adapters and frozen parameters."""
        actor = self.models.actor
        size = actor.total if self.models.critic is None else self.models.critic
        return self._held_of(size, trained=size, largest=max(actor.largest, actor.rest // 2))

    def _held_of(self, total: int, *, trained: int, largest: int) -> Held:
        actor = self.models.actor
        sizes = Sizes(total=total, trained=trained, block=actor.block, rest=actor.rest, largest=largest)
        return held(self.config, sizes, world=self.world, micro_batches=self._micro_batches(), cuda=self.cuda)

    # passes

    def _passes(self) -> dict[str, dict[str, int]]:
        config, mine = self.config, self._held()
        chunk = config.chunk_size if config.fused_linear_logprob else None
        dtype = torch.bfloat16 if config.bf16 else torch.float32
        rows, each = self._rows(config.micro_train_batch_size), 0.0 if mine.gradients else mine.each
        found = _peaks(self.models.actor, rows, dtype, chunk, config.gradient_checkpointing, each)
        scoring = self._rows(config.micro_rollout_batch_size)
        forward = _forward(self.models.actor, scoring, dtype, chunk)
        fraction = COMPILED if self._compiles() and not config.gradient_checkpointing else 1.0
        phases = {"log-prob": {"gathered": mine.gathered, "activations": forward}}
        brought = {"optimizer": mine.optimizer} if mine.offloaded else {}
        phases["update"] = brought | {
            "gradients": mine.gradients,
            "gathered": mine.gathered,
            "sums over ranks": mine.reduce,
            "activations": int(fraction * found.activations),
            "backward and head": found.backward - found.activations,
        }
        if self.cuda:
            for name in ("log-prob", "update"):
                passing = sum(size for part, size in phases[name].items() if part != "optimizer")
                phases[name] = phases[name] | {"torch's cache": int(TORCH_CACHE * passing)}
        if config.kl_coef:
            phases["reference pass"] = self._reference() | phases["log-prob"]
        if rewards := self._rewards():
            largest = max(rewards, key=lambda name: rewards[name])
            phases["reward pass"] = {largest: rewards[largest]}  # one after the other; of their passes the weights alone are known
        phases["optimizer step"] = brought | {"gradients": mine.step_gradients, "scratch of the step": mine.scratch}
        return phases

    def _rows(self, micro: int) -> Rows:
        config = self.config
        length = config.prompt_max_len + config.generate_max_len
        if not config.packing_samples:
            return Rows(rows=micro, length=length, labels=config.generate_max_len)
        tokens = max(config.max_tokens_per_micro_batch, length)
        return Rows(rows=1, length=tokens, labels=tokens * config.generate_max_len // length)

    def _micro_batches(self) -> int:
        config = self.config
        samples = math.ceil(config.train_batch_size / self.world)
        if not config.packing_samples:
            return math.ceil(samples / config.micro_train_batch_size)
        length = config.prompt_max_len + config.generate_max_len
        return math.ceil(samples / max(1, config.max_tokens_per_micro_batch // length))

    def _compiles(self) -> bool:
        if self.config.compile == "auto":
            return self.cuda and compile_problem(self.config) is None
        return self.config.compile == "yes"

    # the engine

    def _engine(self) -> dict[str, int]:
        weights = pass_bytes(self.config) * self.models.actor.total // self.config.engine_tp_size
        if self.config.engine_type in SHARING:
            cache = int(self.config.engine_mem_util * self.device) - weights - ENGINE_ASLEEP
            found = {"engine weights": weights, "KV cache": max(0, cache), "engine, asleep": ENGINE_ASLEEP}
            return found | {"engine, beside its fraction": ENGINE_BESIDE}
        rows = self.config.micro_rollout_batch_size * self.config.n_samples_per_prompt
        return {"engine weights": weights, "KV cache": self._kv(rows)}

    def _asleep(self) -> dict[str, int]:
        return {"engine, asleep": ENGINE_ASLEEP} if self._shares_gpu else {}

    @property
    def _shares_gpu(self) -> bool:
        return self.config.engine_type in SHARING

    @property
    def _sleeps(self) -> bool:
        """An engine in the trainer's own process leaves the device; on a CPU it has no other place."""
        return self.config.enable_engine_sleep and (self.cuda or self._shares_gpu)

    def _kv(self, rows: int) -> int:
        tokens = rows * (self.config.prompt_max_len + self.config.generate_max_len)
        return tokens * self.models.kv_elements * pass_bytes(self.config) // self.config.engine_tp_size


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Settings, or a number of ranks, with which a plan fits, and that plan."""

    settings: Mapping[str, object]
    world: int
    plan: Plan


def cheapest(config: Config, models: Models, *, world: int, device: int, cuda: bool = True) -> Remedy | None:
    """What makes the plan fit and costs least time: one setting alone, the cheap ones first, else several of them together; then more
    ranks. None where nothing of that does.
    """
    steps = [step for step in _steps(config, has_rewards=bool(models.rewards)) if step]
    tried = [*steps, *({k: v for step in steps[: n + 1] for k, v in step.items()} for n in range(1, len(steps)))]
    for changes in tried:
        plan = make_plan(config.model_copy(update=changes), models, world=world, device=device, cuda=cuda)
        if plan.fits:
            return Remedy(settings=changes, world=world, plan=plan)
    if strategy_name(config) != "single":
        changes = tried[-1] if tried else {}
        for ranks in (2 * world, 4 * world, 8 * world):
            for these in ({}, changes):
                plan = make_plan(config.model_copy(update=these), models, world=ranks, device=device, cuda=cuda)
                if plan.fits:
                    return Remedy(settings=these, world=ranks, plan=plan)
    return None


def _steps(config: Config, *, has_rewards: bool) -> list[dict[str, object]]:
    """From what costs no time to what costs much."""
    steps: list[dict[str, object]] = []
    if not config.enable_engine_sleep:
        steps.append({"enable_engine_sleep": True})
    if not config.fused_linear_logprob:
        steps.append({"fused_linear_logprob": True})
    if config.engine_type in SHARING:
        steps += [{"engine_mem_util": fraction} for fraction in (0.7, 0.5, 0.4, 0.3) if fraction < config.engine_mem_util]
    if (config.kl_coef or has_rewards) and not config.offload_frozen:
        steps.append({"offload_frozen": True})
    if config.packing_samples:
        tokens, longest = config.max_tokens_per_micro_batch, config.prompt_max_len + config.generate_max_len
        steps += [{"max_tokens_per_micro_batch": size} for size in (tokens // 2, tokens // 4) if size >= longest]
    else:
        steps += [{"micro_train_batch_size": n} for n in _halves(config.micro_train_batch_size)]
    if not config.gradient_checkpointing:
        steps.append({"gradient_checkpointing": True})
    if strategy_name(config) == "fsdp" and not config.fsdp_cpu_offload:
        steps.append({"fsdp_cpu_offload": True})
    if strategy_name(config) == "deepspeed":
        steps += [{"zero_stage": 2}] if config.zero_stage < 2 else []
        steps += [] if config.adam_offload else [{"adam_offload": True, "zero_stage": max(2, config.zero_stage)}]
    return steps


def _halves(number: int) -> list[int]:
    found = []
    while number > 1:
        number //= 2
        found.append(number)
    return found
