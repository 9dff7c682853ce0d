"""What does this distribution add? One of each kind, all named `acme`."""

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


@hookimpl
def lightrft_plugins() -> Sequence[PluginSpec]:
    return [
        StrategySpec(name="acme", target="acme_rft.strategy:AcmeStrategy", capabilities=frozenset({Capability.MULTI_RANK})),
        EngineSpec(name="acme", target="acme_rft.engine:AcmeEngine", capabilities=frozenset({Capability.LOGPROBS, Capability.SLEEP_1})),
        RewardSpec(name="acme", target="acme_rft.reward:share_right"),
        AdvantageSpec(name="acme", target="acme_rft.algorithms:centred"),
        PolicyLossSpec(name="acme", target="acme_rft.algorithms:reinforce"),
        LoggerSpec(name="acme", target="acme_rft.logger:AcmeLogger"),
    ]
