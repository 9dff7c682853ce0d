"""Makes this rank's engine and its controller of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from lightrft.config.checks import check_engine, strategy_name, without_effect
from lightrft.config.lora_sync import sends_adapters
from lightrft.config.schema import Config
from lightrft.distributed.mesh import Axis, neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup, InferenceEngine
from lightrft.engine.stop_tokens import StopTokens, folder_stop_tokens, unused_generation
from lightrft.errors import CapabilityError
from lightrft.plugins.registry import Registry
from lightrft.plugins.specs import Capability, EngineSpec
from lightrft.rollout.controller import RolloutController
from lightrft.rollout.waking import how_to_make_room
from lightrft.types import SamplingParams


def make_controller(config: Config, *, registry: Registry, world: World, model_path: str | None) -> RolloutController:
    """Checks, groups the ranks, loads the plugin and builds the engine where it lives. Collective."""
    path = model_path or config.model_name_or_path
    check_engine(config, registry=registry, world_size=world.world_size, device_type=world.device.type, model_path=path)
    spec: EngineSpec = registry.spec("engine", config.engine_type)
    if world.rank == 0:
        for line in without_effect(config, spec, device_type=world.device.type):
            print(f"note: {line}", flush=True)
    group = neighbours(world, size=config.engine_tp_size)
    adapters = sends_adapters(config, spec, device_type=world.device.type)
    setup = _engine_setup(config, world=world, group=group, model_path=path, adapters=adapters)

    def make_engine() -> InferenceEngine:
        engine: InferenceEngine = registry.load("engine", config.engine_type)(setup)
        return engine

    def read_sampling(value: Any) -> SamplingParams:
        if isinstance(value, SamplingParams):
            return value
        engine_class: type[InferenceEngine] = registry.load("engine", config.engine_type)
        return engine_class.read_sampling(value)

    texts = _Texts(path, trust_remote_code=config.trust_remote_code)
    stops = folder_stop_tokens(path, trust_remote_code=config.trust_remote_code, also=config.stop_token_ids)
    if world.rank == 0:
        for line in about_generation(config, path, stops):
            print(line, flush=True)
    return RolloutController(
        make_engine,
        spec=spec,
        world=world,
        group=group,
        dtype=setup.dtype,
        sleep_level=_sleep_level(config, spec, device_type=world.device.type),
        verify_checksums=config.verify_sync_every > 0,
        seed=config.seed,
        tokenize=texts.encode,
        read_sampling=read_sampling,
        generate_timeout_s=config.generate_timeout_s,
        make_room=how_to_make_room(config, registry.spec("strategy", strategy_name(config)).capabilities),
        stop_tokens=stops if stops.sources else None,
        decode=texts.decode,
        takes_adapters=adapters,
    )


def about_generation(config: Config, model_path: str, stops: StopTokens) -> list[str]:
    """What a person should know before the first rollout: the stop tokens with their texts, and what of the folder is not used."""
    if not stops.sources:
        return []
    asked = stops.with_setting(config.stop_token_ids, ignore_eos=config.ignore_eos)
    lines = [f"stop tokens: {asked.described()}"]
    if unused := unused_generation(model_path):
        values = ", ".join(f"{name} {value!r}" for name, value in unused.items())
        lines.append(f"generation_config.json says {values}: not used, a rollout and an evaluation are sampled as the settings say")
    return lines


class _Texts:
    """The model's tokenizer, loaded where it is asked: for callers that bring text, and for stop strings."""

    def __init__(self, path: str, *, trust_remote_code: bool) -> None:
        self._path, self._trust = path, trust_remote_code

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._path, trust_remote_code=self._trust)


def _engine_setup(config: Config, *, world: World, group: Axis, model_path: str, adapters: bool = False) -> EngineSetup:
    return EngineSetup(
        model_path=model_path,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        device=world.device,
        seed=config.seed + world.rank // group.size,
        max_model_len=config.prompt_max_len + max(config.generate_max_len, config.eval_max_len),
        max_batch_size=config.micro_rollout_batch_size,
        mem_util=config.engine_mem_util,
        options=config.engine_args,
        trust_remote_code=config.trust_remote_code,
        rank=group.rank,
        group_size=group.size,
        group=group.group,
        adapter_rank=config.lora_rank if adapters else 0,
        deterministic=config.deterministic_rollout,
    )


def _sleep_level(config: Config, spec: EngineSpec, *, device_type: str) -> int | None:
    """The level to sleep at; None where sleep is disabled or, by default settings, the engine has none here.

    Raises:
        CapabilityError: level 2, which nobody gets by default, is asked for and the engine has none on this device.
    """
    needed = Capability.SLEEP_2 if config.engine_sleep_level == 2 else Capability.SLEEP_1
    if not config.enable_engine_sleep:
        return None
    if needed in spec.capabilities_on(device_type):
        return config.engine_sleep_level
    if config.engine_sleep_level == 2:
        raise CapabilityError(
            f"engine_sleep_level=2 needs the capability {str(needed)!r}, which engine {spec.name!r} has on CUDA only; "
            "set --engine_sleep_level 1 or --disable_engine_sleep"
        )
    return None
