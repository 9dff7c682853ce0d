"""The bounds and the aggregation of a policy loss: what the settings say, else what its paper has. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightrft.config.schema import Config
from lightrft.plugins.specs import PolicyLossSpec

TENTH = 0.1


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The ratio may move in [1 - `eps_clip_low`, 1 + `eps_clip_high`]."""

    eps_clip_low: float
    eps_clip_high: float
    loss_aggregation: Literal["token_mean", "sequence_mean", "constant"]


def loss_settings(config: Config, spec: PolicyLossSpec) -> LossSettings:
    """Each from its own setting, bounds then from `eps_clip`; what none of them says is the paper's."""
    return LossSettings(
        eps_clip_low=config.eps_clip_low or config.eps_clip or spec.eps_clip_low,
        eps_clip_high=config.eps_clip_high or config.eps_clip or spec.eps_clip_high,
        loss_aggregation=config.loss_aggregation or spec.loss_aggregation,
    )


def first_ratio_limit(config: Config, spec: PolicyLossSpec) -> float:
    """Nats: the log-ratio of a first step that would take a tenth of the way to the narrower bound, before anything has moved."""
    found = loss_settings(config, spec)
    return TENTH * min(found.eps_clip_low, found.eps_clip_high)


def loss_in_words(config: Config, spec: PolicyLossSpec) -> str:
    """What the choice of the loss has changed, in a sentence; empty where the settings say all, or it is what most losses have."""
    unset = {"eps_clip_low": not (config.eps_clip_low or config.eps_clip), "eps_clip_high": not (config.eps_clip_high or config.eps_clip)}
    unset |= {"loss_aggregation": not config.loss_aggregation}
    brought = [f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
               for name, free in unset.items() if free and (value := getattr(spec, name)) != getattr(PolicyLossSpec, name)]  # fmt: skip
    return f"policy_loss={config.policy_loss}: {', '.join(brought)}, as in its paper; each can be set" if brought else ""
