"""Makes room for an engine that wakes. torch gives its cache back first; where that is not enough, the error says who holds what."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lightrft.config.reward_names import model_folder
from lightrft.config.schema import Config
from lightrft.distributed.device_use import who_holds
from lightrft.distributed.memory import release_cached
from lightrft.distributed.world import World
from lightrft.engine.base import InferenceEngine, WakeTag
from lightrft.errors import EngineError
from lightrft.plugins.specs import Capability


def wake(engine: InferenceEngine | None, tags: Collection[WakeTag], *, world: World, make_room: str) -> None:
    """Wakes this rank's engine, if it has one, after torch's cached blocks were given back. Not collective.

    Engines map their memory beside torch's allocator: a block that torch keeps for later is lost to them.

    Raises:
        EngineError: the device's memory does not suffice: who holds it, and `make_room`, what the user can do.
    """
    release_cached(world.device)
    world.memory.note()
    if engine is None:
        return
    try:
        engine.wake_up(tags)
    except Exception as error:
        if world.device.type != "cuda" or not _out_of_memory(error):
            raise
        raise EngineError(
            f"the engine on rank {world.rank} ran out of memory as it woke ({', '.join(tags)}): {who_holds(world.device)}; {make_room}"
        ) from error


def how_to_make_room(config: Config, capabilities: Collection[Capability]) -> str:
    """What frees device memory for the engine, of what this run does not do yet; `capabilities` are the strategy's."""
    ways = [f"lower engine_mem_util (now {config.engine_mem_util:g})"]
    if Capability.OPTIMIZER_OFFLOAD in capabilities and not config.fsdp_cpu_offload:
        ways.append("set --fsdp_cpu_offload")
    if Capability.ADAM_OFFLOAD in capabilities and not config.adam_offload and config.zero_stage >= 2:
        ways.append("set --adam_offload")
    holds_frozen = config.kl_coef or any(model_folder(reward) for reward in config.reward)
    if Capability.FROZEN_OFFLOAD in capabilities and holds_frozen and not config.offload_frozen:
        ways.append("set --offload_frozen")
    if not config.lora_rank:
        ways.append("train adapters (--lora_rank)")
    return f"to make room {', '.join(ways)}, or take more ranks"


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
