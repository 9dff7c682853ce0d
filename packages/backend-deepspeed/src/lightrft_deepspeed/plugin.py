"""What this distribution adds: the strategy `deepspeed`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import Capability, PluginSpec, StrategySpec, hookimpl


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(
            name="deepspeed",
            target="lightrft_deepspeed.strategy:DeepspeedStrategy",
            capabilities=frozenset(
                {
                    Capability.MULTI_RANK,
                    Capability.BF16,
                    Capability.ZERO_STAGES,
                    Capability.ADAM_OFFLOAD,
                    Capability.SHARDED_FROZEN,
                    Capability.FROZEN_OFFLOAD,
                }
            ),
            summary="DeepSpeed ZeRO 0 to 3, gloo and nccl",
        )
    ]
