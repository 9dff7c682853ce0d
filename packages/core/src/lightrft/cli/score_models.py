"""Reward models in `lightrft score`: in this process, prepared by the strategy `single`, each in its own template."""

from __future__ import annotations

from typing import Any

from lightrft.config.schema import Config
from lightrft.experience.offline import score_file
from lightrft.observe.warnings_log import Warnings
from lightrft.plugins.registry import Registry
from lightrft.rewards.models.classifier import RewardModel
from lightrft.strategy.factory import get_strategy
from lightrft.trainer.reward_models import build_rewards


def score_with_models(config: Config, data: str, *, out: str, registry: Registry) -> dict[str, Any]:
    """As `score_file`; in the result, `warnings` holds what shows that a model is asked in the wrong template.

    Raises:
        UserError: as `build_rewards` and `score_file`.
    """
    config = config.model_copy(update={"strategy": "single"})
    strategy = get_strategy(config, registry=registry)
    rewards = build_rewards(config, strategy)
    result = score_file(data, out=out, rewards=rewards, reward_key=config.reward_key)
    warnings = Warnings(world=strategy.world)
    for reward in rewards:
        if isinstance(reward.function, RewardModel):
            reward.function.tell(warnings)
    return result | {"warnings": [row.text for row in warnings.rows]}
