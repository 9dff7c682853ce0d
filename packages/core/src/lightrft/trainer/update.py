"""What is one policy update? Optimizer steps over a rollout's experience, each one a function of its batch alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.kl import kl_per_token
from lightrft.config.schema import Config
from lightrft.experience.microbatch import micro_batches
from lightrft.experience.trajectory import Trajectory, as_token_batch, padded
from lightrft.models.logprobs import token_logprobs
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase

PolicyLossFunction = Callable[[PolicyLossInput], PolicyLoss]

SUMS = ("policy_loss", "kl", "clipped", "ratio")
"""What is summed over tokens during a step, for the metrics."""


class PolicyUpdate:
    """The optimizer steps of one rollout. The loss of a step is the token mean over *all* its completion tokens, on all ranks.

    With `logprob_gap_action` "correct" each token's policy loss is multiplied by its `correction`; the KL term is not.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        actor: torch.nn.Module,
        optimizer: Optimizer,
        scheduler: Scheduler | None,
        policy_loss: PolicyLossFunction,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.actor = actor
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.policy_loss = policy_loss

    def run(self, experience: Sequence[Trajectory], *, seed: int) -> dict[str, float]:
        """All steps over this rank's share; metrics are global means over the tokens of all steps. Collective."""
        steps = self._mini_batches(experience, seed)
        tokens = self.strategy.all_reduce(torch.tensor([float(sum(t.num_tokens for t in s)) for s in steps], dtype=torch.float64), "sum")
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.strategy.world.device)
        norms = []
        skipped = 0
        for step, count in zip(steps, tokens.tolist(), strict=True):
            sums += self._accumulate(step, count)
            result = self.strategy.optimizer_step(self.optimizer, self.actor, self.scheduler, name="actor")
            norms.append(result.grad_norm)
            skipped += result.skipped
        return self._metrics(self.strategy.all_reduce(sums, "sum") / max(float(tokens.sum()), 1.0), norms, skipped)

    def _mini_batches(self, experience: Sequence[Trajectory], seed: int) -> list[list[Trajectory]]:
        """This rank's share of each optimizer step. With several steps the completions are shuffled first, alike for a seed and rank."""
        size = self.config.train_batch_size // self.strategy.world.world_size
        items = list(experience)
        if len(items) > size:
            random.Random(f"{seed}/{self.strategy.world.rank}").shuffle(items)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _accumulate(self, step: list[Trajectory], num_tokens: float) -> torch.Tensor:
        """Backward over the micro-batches of one step; returns this rank's sums over tokens, on the device."""
        total = torch.zeros(len(SUMS), dtype=torch.float64, device=self.strategy.world.device)

        def share(micro_batch: list[Trajectory]) -> torch.Tensor:
            loss_sum, sums = self._loss_sum(micro_batch)
            total.add_(sums)
            return loss_sum / num_tokens

        batches = micro_batches(step, size=self.config.micro_train_batch_size)
        self.strategy.accumulate(batches, share, self.actor, self.optimizer)
        return total

    def _loss_sum(self, micro_batch: list[Trajectory]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = as_token_batch(micro_batch, device=self.strategy.world.device)
        logprobs = token_logprobs(self.actor, batch, temperature=self.config.temperature)
        old = padded(micro_batch, "old_logprobs", like=batch.mask)
        advantages = padded(micro_batch, "advantages", like=batch.mask)
        policy = self.policy_loss(
            PolicyLossInput(logprobs=logprobs, old_logprobs=old, advantages=advantages, mask=batch.mask, eps_clip=self.config.eps_clip)
        )
        policy_loss = policy.per_token
        if self.config.logprob_gap_action == "correct":
            policy_loss = policy_loss * padded(micro_batch, "correction", like=batch.mask)
        per_token, kl = policy_loss, torch.zeros_like(logprobs)
        if self.config.kl_coef > 0:
            initial = padded(micro_batch, "initial_logprobs", like=batch.mask)
            kl = kl_per_token(logprobs, initial, estimator=self.config.kl_estimator)
            if self.config.kl_in == "loss":
                per_token = per_token + self.config.kl_coef * kl
        columns: list[Any] = [policy_loss, kl, policy.clipped, (logprobs - old).exp()]
        sums = torch.stack([(column.detach() * batch.mask).double().sum() for column in columns])
        return (per_token * batch.mask).sum(), sums

    def _metrics(self, means: torch.Tensor, norms: list[float], skipped: int) -> dict[str, float]:
        policy_loss, kl, clipped, ratio = means.tolist()
        metrics = {
            "train/loss": policy_loss + (self.config.kl_coef * kl if self.config.kl_in == "loss" else 0.0),
            "train/clip_fraction": clipped,
            "train/ratio": ratio,
            "train/grad_norm": sum(norms) / max(len(norms), 1),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/skipped_steps": float(skipped),
        }
        return metrics | ({"train/kl": kl} if self.config.kl_coef > 0 else {})
