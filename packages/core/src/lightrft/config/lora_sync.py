"""What an engine is given of a model with adapters: the adapters alone, or weights into which they were merged."""

from __future__ import annotations

from collections.abc import Iterator

from lightrft.config.schema import Config
from lightrft.plugins.specs import Capability, EngineSpec


def sends_adapters(config: Config, spec: EngineSpec, *, device_type: str = "cuda") -> bool:
    """Whether syncs bring adapters alone: where it is asked for, or with `auto` where that is what the engine declares as its cheaper way
    and nothing else of the settings needs the merged weights.
    """
    if not config.lora_rank or config.lora_sync == "merged":
        return False
    if config.lora_sync == "adapters":
        return True
    cheaper = spec.lora_sync == "adapters" and Capability.ADAPTERS in spec.capabilities_on(device_type)
    return cheaper and not any(_unfit(config, spec))


def lora_sync_problems(config: Config, spec: EngineSpec) -> Iterator[str]:
    """Why adapters alone, where they are asked for by name, cannot be given to this engine; that it takes none is told elsewhere."""
    if config.lora_rank and config.lora_sync == "adapters" and Capability.ADAPTERS in spec.capabilities:
        yield from _unfit(config, spec)


def _unfit(config: Config, spec: EngineSpec) -> Iterator[str]:
    if config.enable_engine_sleep and config.engine_sleep_level == 2 and Capability.SLEEP_2 in spec.capabilities:
        yield (
            "lora_sync='adapters' with engine_sleep_level=2: the engine drops its base weights and no sync would bring them again; set "
            "--engine_sleep_level 1, or --lora_sync merged"
        )
    if spec.max_adapter_rank and config.lora_rank > spec.max_adapter_rank:
        yield (
            f"lora_rank={config.lora_rank} with lora_sync='adapters': engine {spec.name!r} takes adapters of a rank up to "
            f"{spec.max_adapter_rank}; lower it, or set --lora_sync merged"
        )
