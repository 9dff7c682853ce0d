"""What learns from a rollout: the critic, where there is one, then the actor, each with its own optimizer; then the KL's coefficient."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightrft.algorithms.kl_control import KLController
from lightrft.batch.stages import Trainable
from lightrft.config.schema import Config
from lightrft.distributed.collectives import gather_rows
from lightrft.strategy.strategy_base import StrategyBase
from lightrft.trainer.critic_update import CriticUpdate
from lightrft.trainer.update import PolicyUpdate


class Learner:
    """The updates of one rollout. During the first `critic_warmup_steps` rollouts the actor stands still."""

    def __init__(
        self, *, strategy: StrategyBase, config: Config, policy: PolicyUpdate, critic: CriticUpdate | None, kl_control: KLController
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.policy = policy
        self.critic = critic
        self.kl_control = kl_control

    def start(self) -> None:
        """Before the first update: what a backend holds of the optimizers goes where it waits. Collective."""
        for update in self._updates:
            self.strategy.maybe_offload_optimizer(update.optimizer)

    def run(self, experience: Trainable, *, step: int, seed: int, rollout: Mapping[str, float]) -> dict[str, float]:
        """All optimizer steps; `rollout` holds the metrics of the rollout. Returns the metrics of the updates. Collective."""
        metrics: dict[str, float] = {}
        if self.critic is not None:
            self.strategy.maybe_load_optimizer(self.critic.optimizer)
            metrics |= self.critic.run(experience, seed=seed)
            self.strategy.maybe_offload_optimizer(self.critic.optimizer)
        if self.critic is None or step > self.config.critic_warmup_steps:
            self.strategy.maybe_load_optimizer(self.policy.optimizer)
            metrics |= self.policy.run(experience, seed=seed, kl_coef=self.kl_control.coef)
            self.strategy.maybe_offload_optimizer(self.policy.optimizer)
        return metrics | self._adapt_kl(experience, rollout)

    def _adapt_kl(self, experience: Trainable, rollout: Mapping[str, float]) -> dict[str, float]:
        """With `kl_target`: the coefficient of this rollout as a metric; the controller moves on to the next one's."""
        if not self.config.kl_target:
            return {}
        used = self.kl_control.coef
        number = float(gather_rows(torch.tensor([len(experience)]), group=self.strategy.mesh.data.group).sum())
        self.kl_control.update(kl=rollout["rollout/kl"], num_completions=number)
        return {"train/kl_coef": used}

    @property
    def _updates(self) -> list[PolicyUpdate | CriticUpdate]:
        return [self.policy] if self.critic is None else [self.policy, self.critic]
