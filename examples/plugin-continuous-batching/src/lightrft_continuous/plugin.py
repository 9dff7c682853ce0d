"""What this distribution adds: the engine `continuous`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import Capability, EngineSpec, PluginSpec, hookimpl


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        EngineSpec(
            name="continuous",
            api=1,
            target="lightrft_continuous.engine:ContinuousEngine",
            # Not `seed`: all requests of a batch draw from one generator, so a draw depends on what else is in it.
            capabilities=frozenset({Capability.LOGPROBS, Capability.SLEEP_1, Capability.WEIGHT_CHECKSUMS}),
            topology="single_leader",
            summary="transformers' continuous batching over a paged cache",
        )
    ]
