"""What is one update of the critic? Optimizer steps over a rollout's returns, with an optimizer and a clip of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightrft.algorithms.aggregate import token_weights
from lightrft.algorithms.value_loss import explained_variance, value_loss
from lightrft.config.schema import Config
from lightrft.experience.microbatch import micro_batches
from lightrft.experience.trajectory import Trajectory, as_token_batch, padded
from lightrft.models.logprobs import token_values
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase
from lightrft.trainer.minibatches import Step, mini_batches


class CriticUpdate:
    """The critic's optimizer steps of one rollout, on the mini-batches of the actor. The loss of a step is the mean over all its tokens,
    on all ranks. `max_norm` bounds the norm over the critic's parameters alone.
    """

    def __init__(
        self, *, strategy: StrategyBase, config: Config, critic: torch.nn.Module, optimizer: Optimizer, scheduler: Scheduler | None
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.critic = critic
        self.optimizer = optimizer
        self.scheduler = scheduler

    def run(self, experience: Sequence[Trajectory], *, seed: int) -> dict[str, float]:
        """All steps over this rank's share; global metrics. `critic/explained_variance` is that of the values before the update; it is left
        out where all returns are equal. Collective.
        """
        steps = mini_batches(experience, config=self.config, strategy=self.strategy, seed=seed)
        sums = torch.zeros(2, dtype=torch.float64, device=self.strategy.world.device)
        norms = []
        for step in steps:
            sums += self._accumulate(step)
            norms.append(self.strategy.optimizer_step(self.optimizer, self.critic, self.scheduler, name="critic").grad_norm)
        loss, clipped = self.strategy.all_reduce(sums, "sum").tolist()
        explained = explained_variance(self.strategy.all_reduce(_variance_sums(experience), "sum"))
        metrics = {
            "critic/loss": loss / len(steps),
            "critic/clip_fraction": clipped / max(sum(step.num_tokens for step in steps), 1.0),
            "critic/grad_norm": sum(norms) / len(norms),
            "critic/lr": self.optimizer.param_groups[0]["lr"],
        }
        return metrics if math.isnan(explained) else metrics | {"critic/explained_variance": explained}

    def _accumulate(self, step: Step) -> torch.Tensor:
        """Backward over the micro-batches of one step; this rank's share of the loss, and its clipped tokens."""
        total = torch.zeros(2, dtype=torch.float64, device=self.strategy.world.device)

        def share(micro_batch: list[Trajectory]) -> torch.Tensor:
            batch = as_token_batch(micro_batch, device=self.strategy.world.device)
            found = value_loss(
                token_values(self.critic, batch),
                old_values=padded(micro_batch, "values", like=batch.mask),
                returns=padded(micro_batch, "returns", like=batch.mask),
                clip=self.config.value_clip,
            )
            weights = token_weights(
                batch.mask, how="token_mean", num_tokens=step.num_tokens, num_sequences=step.num_sequences, constant=1.0
            )
            loss = (found.per_token * weights).sum()
            total.add_(torch.stack([loss.detach().double(), (found.clipped * batch.mask).double().sum()]))
            return loss

        batches = micro_batches(step.rows, size=self.config.micro_train_batch_size)
        self.strategy.accumulate(batches, share, self.critic, self.optimizer)
        return total


def _variance_sums(experience: Sequence[Trajectory]) -> torch.Tensor:
    """float64 [5] of this rank's tokens, for `explained_variance`."""
    none = torch.zeros(0)
    returns = torch.cat([none, *(t.returns for t in experience if t.returns is not None)]).double()
    values = torch.cat([none, *(t.values for t in experience if t.values is not None)]).double()
    errors = returns - values
    count = torch.tensor(float(len(returns)), dtype=torch.float64)
    return torch.stack([count, returns.sum(), (returns**2).sum(), errors.sum(), (errors**2).sum()])
