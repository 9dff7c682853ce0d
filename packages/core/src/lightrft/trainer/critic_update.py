"""One update of the critic: optimizer steps over a rollout's returns, with an optimizer and a clip of its own."""

from __future__ import annotations

import math

import torch

from lightrft.algorithms.aggregate import token_weights
from lightrft.algorithms.value_loss import explained_variance, value_loss
from lightrft.batch.images import BlankPrompt
from lightrft.batch.planning import Step, epochs
from lightrft.batch.stages import Trainable
from lightrft.config.schema import Config
from lightrft.distributed.collectives import gather_rows
from lightrft.distributed.lockstep import lockstep
from lightrft.experience.batching import update_batching
from lightrft.models.score import token_values
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase


class CriticUpdate:
    """The critic's optimizer steps of one rollout, on the mini-batches of the actor. The loss of a step is the mean over all its tokens,
    on all ranks. `max_norm` bounds the norm over the critic's parameters alone.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        critic: torch.nn.Module,
        optimizer: Optimizer,
        scheduler: Scheduler | None,
        blank: BlankPrompt | None = None,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.critic = critic
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.batching = update_batching(config, strategy, model=critic, blank=blank)

    def run(self, experience: Trainable, *, seed: int) -> dict[str, float]:
        """All steps over this rank's slice; global metrics. `critic/explained_variance` is that of the values before the update; it is left
        out where all returns are equal. Collective.
        """
        plan = epochs(experience, self.batching, axis=self.strategy.mesh.data, seed=seed)
        steps = [step for epoch in plan for step in epoch.steps]
        sums = torch.zeros(2, dtype=torch.float64, device=self.strategy.world.device)
        norms = []
        rate = 0.0
        for epoch in plan:
            there = epoch.dealing.there(experience)
            for step in epoch.steps:
                sums += self._accumulate(there, step)
                rate = self.optimizer.param_groups[0]["lr"]  # of the step that is made now
                norms.append(self.strategy.optimizer_step(self.optimizer, self.critic, self.scheduler, name="critic").grad_norm)
        totals = gather_rows(torch.cat([sums.cpu(), _variance_sums(experience)]), group=self.strategy.mesh.data.group).sum(0)
        loss, clipped = totals[:2].tolist()
        explained = explained_variance(totals[2:])
        metrics = {
            "critic/loss": loss / len(steps),
            "critic/clip_fraction": clipped / max(sum(step.num_tokens for step in steps), 1.0),
            "critic/grad_norm": sum(norms) / len(norms),
            "critic/lr": rate,
        }
        return metrics if math.isnan(explained) else metrics | {"critic/explained_variance": explained}

    def _accumulate(self, batch: Trainable, step: Step) -> torch.Tensor:
        """Backward over the micro-batches of one step; this rank's loss share, and its clipped tokens."""
        total = torch.zeros(2, dtype=torch.float64, device=self.strategy.world.device)

        def loss_share(index: torch.Tensor) -> torch.Tensor:
            micro = self.batching.micro(batch, index, columns=("values", "returns"), device=self.strategy.world.device)
            mask = micro.grid.mask()
            found = value_loss(
                micro.grid.spread(token_values(self.critic, micro)),
                old_values=micro.rows("values"),
                returns=micro.rows("returns"),
                clip=self.config.value_clip,
            )
            weights = token_weights(mask, how="token_mean", num_tokens=step.num_tokens, num_sequences=step.num_sequences, constant=1.0)
            loss = (found.per_token * weights).sum()
            total.add_(torch.stack([loss.detach().double(), (found.clipped * mask).double().sum()]))
            return loss

        nothing = torch.zeros(0, dtype=torch.int64)
        parts = lockstep(self.batching.micro_batches(batch, step.index), empty=nothing, world=self.strategy.world)
        self.strategy.accumulate(parts, loss_share, self.critic, self.optimizer)
        return total


def _variance_sums(experience: Trainable) -> torch.Tensor:
    """float64 [5] of this rank's sampled tokens, for `explained_variance`."""
    returns, values = experience.sampled(experience.returns).double(), experience.sampled(experience.values).double()
    errors = returns - values
    count = torch.tensor(float(len(returns)), dtype=torch.float64)
    return torch.stack([count, returns.sum(), (returns**2).sum(), errors.sum(), (errors**2).sum()])
