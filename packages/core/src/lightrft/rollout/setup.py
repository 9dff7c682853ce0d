"""How does a configuration become this rank's engine and its controller?"""

from __future__ import annotations

from typing import Any

import torch

from lightrft.config.checks import check_engine, strategy_name, without_effect
from lightrft.config.schema import Config
from lightrft.distributed.mesh import Axis, neighbours
from lightrft.distributed.world import World
from lightrft.engine.base import EngineSetup, InferenceEngine
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
    setup = _engine_setup(config, world=world, group=group, model_path=path)

    def make_engine() -> InferenceEngine:
        engine: InferenceEngine = registry.load("engine", config.engine_type)(setup)
        return engine

    def read_sampling(value: Any) -> SamplingParams:
        if isinstance(value, SamplingParams):
            return value
        engine_class: type[InferenceEngine] = registry.load("engine", config.engine_type)
        return engine_class.read_sampling(value)

    def tokenize(text: str) -> list[int]:
        from transformers import AutoTokenizer  # only for callers that bring text

        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    return RolloutController(
        make_engine,
        spec=spec,
        world=world,
        group=group,
        dtype=setup.dtype,
        sleep_level=_sleep_level(config, spec, device_type=world.device.type),
        verify_sums=config.verify_sync_every > 0,
        seed=config.seed,
        tokenize=tokenize,
        read_sampling=read_sampling,
        generate_timeout_s=config.generate_timeout_s,
        make_room=how_to_make_room(config, registry.spec("strategy", strategy_name(config)).capabilities),
    )


def _engine_setup(config: Config, *, world: World, group: Axis, model_path: str) -> EngineSetup:
    return EngineSetup(
        model_path=model_path,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        device=world.device,
        seed=config.seed,
        max_model_len=config.prompt_max_len + config.generate_max_len,
        max_batch_size=config.micro_rollout_batch_size,
        mem_util=config.engine_mem_util,
        trust_remote_code=config.trust_remote_code,
        rank=group.rank,
        group_size=group.size,
        group=group.group,
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
