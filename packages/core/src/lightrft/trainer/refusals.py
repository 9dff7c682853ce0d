"""The arguments of the trainer that are taken, and those that are refused with what to do instead."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.config.schema import Config


def refuse(
    config: Config,
    initial_model: torch.nn.Module | None,
    *,
    needs_critic: bool,
    critic: Any,
    critic_optim: Any,
    critic_scheduler: Any,
    ema_model: Any,
) -> None:
    """Raises ValueError for arguments that the estimator or no phase would use, and for missing ones. `needs_critic`: its spec says so."""
    estimator = f"advantage_estimator={config.advantage_estimator!r}"
    for name, value in (("critic", critic), ("critic_optim", critic_optim), ("critic_scheduler", critic_scheduler)):
        if value is not None and not needs_critic:
            raise ValueError(f"{name} was given, but {estimator} uses no critic; pass {name}=None, or use an estimator that does (gae)")
        if value is None and needs_critic and name != "critic_scheduler":
            raise ValueError(
                f"{estimator} needs a critic, found {name}=None; pass critic and critic_optim (lightrft.trainer.build.build_critic makes "
                "both), or use an estimator without one (grpo)"
            )
    if ema_model is not None and not config.ema_beta:
        raise ValueError("ema_model was given, but ema_beta=0 never moves it; pass ema_model=None, or set ema_beta (0.992 is usual)")
    if config.ema_beta and ema_model is None:
        raise ValueError(
            f"ema_beta={config.ema_beta} moves an average of the actor; pass ema_model (strategy.prepare_ema_model), or set ema_beta=0"
        )
    if config.kl_coef > 0 and initial_model is None:
        raise ValueError(f"kl_coef={config.kl_coef} compares with the initial model; pass initial_model, or set kl_coef=0")
    if config.kl_coef == 0 and initial_model is not None:
        raise ValueError("initial_model was given, but kl_coef=0 never compares with it; pass initial_model=None, or set kl_coef")
