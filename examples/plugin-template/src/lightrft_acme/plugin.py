"""What this distribution adds: one plugin of each kind, all named `acme`."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.plugins import (
    AdvantageSpec,
    Capability,
    EngineSpec,
    LoggerSpec,
    PluginSpec,
    PolicyLossSpec,
    RewardSpec,
    StrategySpec,
    hookimpl,
)

API = 1
"""The plugin API that this code was written and tested for; `lightrft.plugins.API_VERSION` is the installed one."""

ENGINE_CAPABILITIES = frozenset({Capability.LOGPROBS, Capability.SEED, Capability.MIN_P, Capability.SLEEP_1, Capability.WEIGHT_CHECKSUMS})


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(
            name="acme",
            api=API,
            target="lightrft_acme.strategy:AcmeStrategy",
            capabilities=frozenset({Capability.MULTI_RANK}),
            summary="data parallel by hand: one sum of all gradients for each step",
        ),
        EngineSpec(
            name="acme",
            api=API,
            target="lightrft_acme.engine:AcmeEngine",
            capabilities=ENGINE_CAPABILITIES,
            topology="single_leader",
            summary="transformers without a cache: one prompt at a time",
        ),
        RewardSpec(name="acme", api=API, target="lightrft_acme.reward:fraction_right", summary="the fraction of characters that are right"),
        AdvantageSpec(
            name="acme",
            api=API,
            target="lightrft_acme.advantage:centred",
            reads=frozenset(),  # of the settings for estimators: one that is set is refused, for it would have no effect
            summary="the reward less the mean of all rewards",
        ),
        PolicyLossSpec(name="acme", api=API, target="lightrft_acme.loss:reinforce", reads=frozenset(), summary="REINFORCE"),
        LoggerSpec(name="acme", api=API, target="lightrft_acme.logger:AcmeLogger", summary="one line of text for each step"),
    ]
