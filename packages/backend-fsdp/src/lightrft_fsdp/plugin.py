"""What this distribution adds: the strategy `fsdp`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import Capability, PluginSpec, StrategySpec, hookimpl


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(
            name="fsdp",
            target="lightrft_fsdp.strategy:FSDPV2Strategy",
            capabilities=frozenset(
                {
                    Capability.MULTI_RANK,
                    Capability.BF16,
                    Capability.MIXED_PRECISION_OPTIMIZER,
                    Capability.OPTIMIZER_OFFLOAD,
                    Capability.RESHARD_POLICY,
                    Capability.SHARDED_FROZEN,
                    Capability.FROZEN_OFFLOAD,
                }
            ),
            summary="torch's fully_shard (FSDP2), gloo and nccl",
        )
    ]
