"""Checks that this configuration can be run here. Every cross-check that needs neither torch nor a model; all answers at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

from lightrft.config.algorithm_checks import algorithm_problems, correction_in_words
from lightrft.config.data_sources import POSSIBLE, prompt_data_problems
from lightrft.config.engine_args import option_problems
from lightrft.config.environment_checks import environment_problems
from lightrft.config.file_checks import evaluation_problems, file_problems, model_folder_problems
from lightrft.config.hang_limits import hang_limit_problems
from lightrft.config.ignored import ignored_settings, is_given
from lightrft.config.lora_sync import lora_sync_problems
from lightrft.config.metric_names import never_logged
from lightrft.config.model_checks import engine_fit
from lightrft.config.partial_checks import partial_problems
from lightrft.config.reward_checks import check_rewards
from lightrft.config.row_checks import row_fit, shared_ranks
from lightrft.config.schema import Config
from lightrft.config.sections import unread_sections
from lightrft.errors import ConfigError, PluginError
from lightrft.plugins.registry import PluginEntry, Registry
from lightrft.plugins.specs import AdvantageSpec, Capability, EngineSpec, PluginSpec


@dataclass(frozen=True)
class Need:
    """A setting that is honoured only by plugins with a capability."""

    field: str
    kind: str
    capability: Capability
    like: str = ""
    """The setting that does the same kind of thing on plugins that honour that one instead."""

    by_default: bool = False
    """Whether its default, too, asks for something where it was typed."""

    refused_on_cpu: bool = False
    """Whether a recipe that sets it is refused where the engine has the capability on CUDA only; else it runs there without it."""


NEEDS = (
    Need("zero_stage", "strategy", Capability.ZERO_STAGES, by_default=True),
    Need("adam_offload", "strategy", Capability.ADAM_OFFLOAD, like="fsdp_cpu_offload"),
    Need("fsdp_cpu_offload", "strategy", Capability.OPTIMIZER_OFFLOAD, like="adam_offload"),
    Need("offload_frozen", "strategy", Capability.FROZEN_OFFLOAD),
    Need("fsdp_reshard_after_forward", "strategy", Capability.RESHARD_POLICY),
    Need("bf16", "strategy", Capability.BF16),
    Need("use_mp_opt", "strategy", Capability.MIXED_PRECISION_OPTIMIZER),
    Need("engine_tp_size", "engine", Capability.TENSOR_PARALLEL),
    Need("engine_mem_util", "engine", Capability.MEM_UTIL),
    Need("deterministic_rollout", "engine", Capability.DETERMINISTIC, refused_on_cpu=True),
    Need("stop", "engine", Capability.STOP_STRINGS),
    Need("min_p", "engine", Capability.MIN_P),
    Need("min_new_tokens", "engine", Capability.MIN_NEW_TOKENS),
    Need("mixed_mm_data", "engine", Capability.MULTIMODAL),
)


def strategy_name(config: Config) -> str:
    """The guide's selection: `--strategy NAME`, else `--fsdp` gives fsdp, else deepspeed."""
    return config.strategy or ("fsdp" if config.fsdp else "deepspeed")


def compile_problem(config: Config) -> str | None:
    """Why the blocks of a model are not compiled with these settings, in words; None where they can be."""
    if strategy_name(config) == "deepspeed" and config.zero_stage == 3:
        return "zero_stage=3 gathers parameters by hooks inside of each block, which torch.compile does not go through"
    if config.sp_size > 1:
        return f"sp_size={config.sp_size} lets ranks talk inside of each block, which was never compiled"
    if config.router_balance_coef:
        return f"router_balance_coef={config.router_balance_coef} reads the routers inside of each block"
    return None


def check(config: Config, *, registry: Registry, world_size: int, typed: Collection[str] = (), rewards: bool = True) -> None:
    """Raises ConfigError with every problem found. Looks at files and plugins; loads no model, starts no process.

    `typed` names the settings that stood on the command line, where a default can mean more than silence. `rewards` False: the settings
    name none, since functions are given.
    """
    problems = [*_sizes(config, world_size), *_choices(config), *algorithm_problems(config, registry), *ignored_settings(config)]
    problems += unread_sections(config, registry)
    problems += [*file_problems(config), *row_fit(config, world_size=world_size), *_plugins(config, registry, world_size)]
    problems += _typed(config, registry, typed)
    problems += check_rewards(config, registry=registry) if rewards else []
    if problems:
        raise ConfigError(problems)


def check_strategy(config: Config, *, registry: Registry, world_size: int) -> None:
    """The part of `check` that concerns the strategy alone, for scripts that build the rest themselves."""
    problems = [*_strategy_choice(config), *_capabilities(config, registry, "strategy", strategy_name(config))]
    problems += shared_ranks(config, world_size=world_size)
    if not problems and world_size > 1:
        problems += _multi_rank(config, registry, world_size)
    if problems:
        raise ConfigError(problems)


def check_trainer(config: Config, *, registry: Registry, world_size: int) -> None:
    """The part of `check` that concerns a trainer which a script builds from models, prompts, evaluation and rewards of its own."""
    config = config.model_copy(update={"eval_data": config.eval_data or ["of the script"]})
    problems = [*_batches(config, world_size), *_lengths(config), *algorithm_problems(config, registry), *ignored_settings(config)]
    problems += unread_sections(config, registry)
    problems += _plugins(config, registry, world_size)
    if problems:
        raise ConfigError(problems)


def check_engine(
    config: Config, *, registry: Registry, world_size: int, device_type: str | None = None, model_path: str | None = None
) -> None:
    """The part of `check` that concerns the engine alone; on a rank also what depends on its device, and the model that it is to load."""
    problems = [*_tp_size(config, world_size), *_capabilities(config, registry, "engine", config.engine_type), *_sleep(config, registry)]
    problems += _engine_fit(config, registry, device_type=device_type, model_path=model_path)
    if problems:
        raise ConfigError(problems)


def without_effect(config: Config, spec: EngineSpec, *, device_type: str) -> list[str]:
    """What is set and engine `spec` honours on CUDA only, a sentence each: no error, so that a recipe for GPUs runs on a CPU as it is."""
    lacking = spec.capabilities - spec.capabilities_on(device_type)
    return [
        f"{need.field}={getattr(config, need.field)!r} has no effect: engine {spec.name!r} has {str(need.capability)!r} on CUDA only, "
        f"this rank runs on {device_type}"
        for need in NEEDS
        if need.kind == "engine" and need.capability in lacking and is_given(config, need.field) and not need.refused_on_cpu
    ]


def check_bisect(config: Config, *, registry: Registry, world_size: int) -> None:
    """What the search for a mismatch needs: a strategy, an engine that gives log-probs, a model and prompts."""
    problems = [
        *model_folder_problems(config),
        *prompt_data_problems(config),
        *_tp_size(config, world_size),
        *_plugins(config, registry, world_size),
    ]
    if not config.prompt_data:
        problems.append(f"prompt_data is not set; {POSSIBLE}")
    spec = _spec(registry, "engine", config.engine_type)
    if spec and Capability.LOGPROBS not in spec.capabilities:
        provider = str(registry.entry("engine", config.engine_type).provider)
        problems.append(_lacks("bisect-mismatch", "engine", config.engine_type, provider, Capability.LOGPROBS, registry))
    if problems:
        raise ConfigError(problems)


def check_showing(config: Config) -> None:
    """What a look at prompts needs: a model's tokenizer and prompts, no strategy and no engine."""
    problems = [*model_folder_problems(config, dequantises=True), *prompt_data_problems(config), *_choices(config)]
    if not config.prompt_data:
        problems.append(f"prompt_data is not set; {POSSIBLE}")
    if problems:
        raise ConfigError(problems)


def check_invariance(config: Config, *, registry: Registry, world_size: int) -> None:
    """What the check of a recipe's update needs: strategy, engine, algorithm, a model and prompts; no batch sizes, no run folder."""
    problems = [*model_folder_problems(config), *prompt_data_problems(config), *_tp_size(config, world_size)]
    problems += [*algorithm_problems(config, registry), *row_fit(config, world_size=world_size)]
    problems += _plugins(config, registry, world_size)
    if not config.prompt_data:
        problems.append(f"prompt_data is not set; {POSSIBLE}")
    if config.use_mp_opt:
        problems.append("use_mp_opt=True holds bfloat16 parameters, off which no gradient can be read; check the update without it")
    if problems:
        raise ConfigError(problems)


def check_eval(config: Config, *, registry: Registry, world_size: int) -> None:
    """What an evaluation alone needs: a strategy, an engine, rewards, a model and evaluation data; no batch sizes, no run folder."""
    problems = [
        *model_folder_problems(config),
        *evaluation_problems(config),
        *_lengths(config),
        *_tp_size(config, world_size),
        *_plugins(config, registry, world_size),
    ]
    problems += check_rewards(config, registry=registry)
    if not config.eval_data:
        problems.append(f"eval_data is not set; {POSSIBLE}")
    if problems:
        raise ConfigError(problems)


def _tp_size(config: Config, world_size: int) -> Iterator[str]:
    if world_size % config.engine_tp_size:
        possible = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        yield f"engine_tp_size={config.engine_tp_size} does not divide the world size {world_size}; possible: {possible}"


def _sizes(config: Config, world_size: int) -> Iterator[str]:
    ranks, what = world_size, "world size"
    if config.sp_size > 1 and world_size % config.sp_size == 0:  # else told by `row_fit`
        ranks, what = world_size // config.sp_size, f"world size / sp_size {config.sp_size}"
    unit = config.micro_train_batch_size * ranks
    if config.train_batch_size % unit:
        yield (
            f"train_batch_size={config.train_batch_size} is not divisible by micro_train_batch_size x {what} = "
            f"{config.micro_train_batch_size} x {ranks} = {unit}; use a multiple of {unit}"
        )
    yield from _batches(config, world_size)
    yield from _scratch(config)


def _batches(config: Config, world_size: int) -> Iterator[str]:
    """What the loop itself needs of the sizes: a rollout is whole optimizer steps, and the same number of prompts on every rank."""
    yield from _tp_size(config, world_size)
    if config.rollout_batch_size % world_size:
        yield f"rollout_batch_size={config.rollout_batch_size} is not divisible by the world size {world_size}; use a multiple of it"
    samples = config.rollout_batch_size * config.n_samples_per_prompt
    if samples % config.train_batch_size:
        yield (
            f"train_batch_size={config.train_batch_size} does not divide the samples of one rollout, "
            f"rollout_batch_size x n_samples_per_prompt = {config.rollout_batch_size} x {config.n_samples_per_prompt} = {samples}"
        )


def _scratch(config: Config) -> Iterator[str]:
    if config.scratch_tokenizer != "none" and config.scratch_hidden % (2 * config.scratch_heads):
        unit = 2 * config.scratch_heads
        yield f"scratch_hidden={config.scratch_hidden} is not a multiple of 2 x scratch_heads = {unit} (rotary halves each head)"
    if config.scratch_tokenizer != "none" and config.scratch_heads % config.scratch_kv_heads:
        yield f"scratch_kv_heads={config.scratch_kv_heads} does not divide scratch_heads={config.scratch_heads}"


def _choices(config: Config) -> Iterator[str]:
    yield from _lengths(config)
    if "{prompt}" not in config.prompt_template:
        yield f"prompt_template={config.prompt_template!r} does not contain {{prompt}}"
    if config.sft_steps and not (config.sft_key or config.label_key):
        yield f"sft_steps={config.sft_steps} needs texts to imitate; set sft_key or label_key to their column"
    if config.lora_rank and find_spec("peft") is None:
        yield f"lora_rank={config.lora_rank} needs peft: pip install 'lightrft[lora]'; or set --lora_rank 0"
    if config.lora_rank and not config.lora_target_modules:
        yield "lora_target_modules is empty; name layers, or all-linear"
    yield from hang_limit_problems(config)


def _lengths(config: Config) -> Iterator[str]:
    for name in ("generate_max_len", "eval_max_len"):
        longest = getattr(config, name)
        if longest and config.min_new_tokens > longest:
            yield f"min_new_tokens={config.min_new_tokens} is more than {name}={longest}; lower it, or raise {name}"


def _plugins(config: Config, registry: Registry, world_size: int) -> Iterator[str]:
    yield from _strategy_choice(config)
    yield from _capabilities(config, registry, "strategy", strategy_name(config))
    yield from _multi_rank(config, registry, world_size)
    yield from _capabilities(config, registry, "engine", config.engine_type)
    yield from _sleep(config, registry)
    yield from _engine_fit(config, registry)
    yield from _gap(config, registry)
    yield from environment_problems(config, registry)
    yield from partial_problems(config, registry)
    if config.early_stop_patience or (config.keep_best and (config.save_every or config.save_every_minutes)):
        yield from _best_metric(config, registry)
    named = [("advantage", config.advantage_estimator), ("policy_loss", config.policy_loss)]
    named += [("logger", name) for name in config.loggers]
    for name in sorted({name for name in config.loggers if config.loggers.count(name) > 1}):
        yield f"loggers names {name!r} twice; name it once"
    for kind, name in named:
        try:
            registry.entry(kind, name)
        except PluginError as error:
            yield str(error)


def _best_metric(config: Config, registry: Registry) -> Iterator[str]:
    spec = _spec(registry, "advantage", config.advantage_estimator)
    reason = never_logged(config.best_metric, config, has_critic=isinstance(spec, AdvantageSpec) and spec.critic)
    if reason:
        yield f"best_metric={config.best_metric!r}: {reason}"


def _strategy_choice(config: Config) -> Iterator[str]:
    if config.fsdp and config.strategy not in ("", "fsdp"):
        yield f"--fsdp and --strategy {config.strategy} exclude each other; leave one out"
    if config.adam_offload and config.zero_stage < 2:
        yield f"adam_offload=True needs zero_stage 2 or 3, found zero_stage={config.zero_stage}; raise it, or leave adam_offload out"
    if config.use_mp_opt and not config.bf16:
        yield "use_mp_opt=True needs bf16, found bf16=False; set --bf16, or leave use_mp_opt out: parameters are float32 then anyway"
    if config.compile == "yes" and (problem := compile_problem(config)):
        yield f"compile='yes': {problem}; leave compile out"
    if config.bf16 and config.zero_stage == 0:  # DeepSpeed 0.19 adds up and reduces gradients in bfloat16 there, and knows no other way
        yield "bf16=True at zero_stage=0 would add up gradients in bfloat16; use zero_stage 1 (or 2, 3), which add them up in float32"


def _spec(registry: Registry, kind: str, name: str) -> PluginSpec | None:
    try:
        spec: PluginSpec = registry.spec(kind, name)
        return spec
    except PluginError:
        return None


def _capabilities(config: Config, registry: Registry, kind: str, name: str) -> Iterator[str]:
    try:
        entry = registry.entry(kind, name)
    except PluginError as error:
        yield str(error)
        return
    yield from _unmet(config, registry, entry, [need for need in NEEDS if need.kind == kind and is_given(config, need.field)])


def _typed(config: Config, registry: Registry, typed: Collection[str]) -> Iterator[str]:
    """What was typed at its default and asks for something all the same; plots that were typed, and cannot be drawn."""
    if "plot_every" in typed and config.plot_every and find_spec("matplotlib") is None:
        yield f"plot_every={config.plot_every} needs matplotlib: pip install 'lightrft[plot]'; or set --plot_every 0"
    needs = [need for need in NEEDS if need.by_default and need.field in typed and not is_given(config, need.field)]
    for need in needs:
        with suppress(PluginError):  # told by `_capabilities`
            name = strategy_name(config) if need.kind == "strategy" else config.engine_type
            yield from _unmet(config, registry, registry.entry(need.kind, name), [need])


def _unmet(config: Config, registry: Registry, entry: PluginEntry, needs: Sequence[Need]) -> Iterator[str]:
    assert entry.spec is not None
    kind, name = entry.spec.kind, entry.spec.name
    for need in needs:
        if need.capability not in entry.spec.capabilities:
            lacks = _lacks(f"{need.field}={getattr(config, need.field)!r}", kind, name, str(entry.provider), need.capability, registry)
            honoured = [other.field for other in NEEDS if other.field == need.like and other.capability in entry.spec.capabilities]
            yield lacks + "".join(f"; with {name} use {field}" for field in honoured)


def _lacks(asked: str, kind: str, name: str, provider: str, capability: Capability, registry: Registry) -> str:
    having = ", ".join(registry.having(kind, capability)) or "no installed one"
    spec = _spec(registry, kind, name)
    reason = spec.why_not.get(capability, "") if isinstance(spec, EngineSpec) else ""
    return (
        f"{asked} needs the capability {str(capability)!r}, which {kind} {name!r} ({provider}) does not declare"
        f"{f' ({reason})' if reason else ''}; {kind} that does: {having}"
    )


def _multi_rank(config: Config, registry: Registry, world_size: int) -> Iterator[str]:
    name = strategy_name(config)
    spec = _spec(registry, "strategy", name)
    if spec and world_size > 1 and Capability.MULTI_RANK not in spec.capabilities:
        provider = str(registry.entry("strategy", name).provider)
        yield _lacks(f"a world of {world_size} ranks", "strategy", name, provider, Capability.MULTI_RANK, registry)


def _sleep(config: Config, registry: Registry) -> Iterator[str]:
    spec = _spec(registry, "engine", config.engine_type)
    if spec and config.enable_engine_sleep and config.engine_sleep_level == 2 and Capability.SLEEP_2 not in spec.capabilities:
        provider = str(registry.entry("engine", config.engine_type).provider)
        yield _lacks("engine_sleep_level=2", "engine", config.engine_type, provider, Capability.SLEEP_2, registry)


def _engine_fit(config: Config, registry: Registry, *, device_type: str | None = None, model_path: str | None = None) -> Iterator[str]:
    spec = _spec(registry, "engine", config.engine_type)
    if isinstance(spec, EngineSpec):
        yield from option_problems(config, spec)
        yield from _adapters(config, registry, spec)
        lacking = spec.capabilities - spec.capabilities_on(device_type or "cuda")
        for need in NEEDS:
            if need.refused_on_cpu and need.capability in lacking and is_given(config, need.field):
                asked = f"{need.field}={getattr(config, need.field)!r}"
                yield f"{asked}: engine {spec.name!r} has {str(need.capability)!r} on CUDA only, and this is {device_type}; leave it out"
        yield from engine_fit(config, spec, device_type=device_type, model_path=model_path)


def _adapters(config: Config, registry: Registry, spec: EngineSpec) -> Iterator[str]:
    if config.lora_rank and config.lora_sync == "adapters" and Capability.ADAPTERS not in spec.capabilities:
        provider = str(registry.entry("engine", config.engine_type).provider)
        lacks = _lacks("lora_sync='adapters'", "engine", config.engine_type, provider, Capability.ADAPTERS, registry)
        yield f"{lacks}; or set --lora_sync merged"
    yield from lora_sync_problems(config, spec)


def _gap(config: Config, registry: Registry) -> Iterator[str]:
    if config.corrects and config.logprob_gap_prompts and is_given(config, "logprob_gap_prompts"):  # 0 is told by `ignored_settings`
        yield (
            f"logprob_gap_prompts={config.logprob_gap_prompts} has no effect with {correction_in_words(config)}, which takes all prompts; "
            "leave logprob_gap_prompts out"
        )
    spec = _spec(registry, "engine", config.engine_type)
    if spec is None or Capability.LOGPROBS in spec.capabilities:
        return
    provider = str(registry.entry("engine", config.engine_type).provider)
    remedies = {name: f"set --{name} 0" for name in ("logprob_gap_prompts", "verify_sync_every") if getattr(config, name)}
    if config.logprob_gap_action == "correct":
        remedies = {"logprob_gap_action": "leave logprob_gap_action out", **remedies}
    if config.max_version_lag:
        remedies = {"max_version_lag": "leave max_version_lag and oversample out", **remedies}
    for name, remedy in remedies.items():
        asked = f"{name}={getattr(config, name)!r}"
        yield _lacks(asked, "engine", config.engine_type, provider, Capability.LOGPROBS, registry) + f"; or {remedy}"
