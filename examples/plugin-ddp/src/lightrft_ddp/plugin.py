"""What this distribution adds: the strategy `ddp`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import Capability, PluginSpec, StrategySpec, hookimpl


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(
            name="ddp",
            api=1,
            target="lightrft_ddp.strategy:DDPStrategy",
            capabilities=frozenset({Capability.MULTI_RANK}),
            summary="torch's DistributedDataParallel: gradients are summed while the backward pass goes on",
        )
    ]
