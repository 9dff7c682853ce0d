"""What the models of a run say of a rollout before its update: the actor, the reference model, the critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.batch.images import BlankPrompt
from lightrft.batch.planning import Batching, Epoch, epochs
from lightrft.batch.stages import Rewarded, Sampled
from lightrft.config.schema import Config
from lightrft.experience.batching import needs_old_logprobs, update_batching
from lightrft.experience.scoring import Parts, score_logprobs, score_values
from lightrft.strategy.strategy_base import StrategyBase


@dataclass(frozen=True, kw_only=True)
class Scores:
    """float32 [S], on sampled tokens: see `Scored`; `untempered` is the actor's log-prob at temperature 1, at least where the engine's is
    known. `old` is not a number where the update's own log-probs are the old ones.
    """

    old: torch.Tensor
    untempered: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor


class Scorer:
    """The actor is asked in the update's own micro-batches: in bfloat16 a matmul's rounding depends on its shape, and the ratio of a first
    step has to be 1. Where one update follows its rollout the pass is left out, but for what the gap is measured on.
    """

    def __init__(
        self,
        *,
        strategy: StrategyBase,
        config: Config,
        actor: Any,
        reference: Any | None,
        critic: Any | None,
        blank: BlankPrompt | None = None,
    ) -> None:
        self.strategy = strategy
        self.blank = blank
        self.config = config
        self.actor = actor
        self.reference = reference
        self.critic = critic

    def run(self, batch: Rewarded, *, seed: int) -> Scores:
        """All columns. Collective; the same passes on every rank."""
        batching = update_batching(self.config, self.strategy, model=self.actor, blank=self.blank)
        epoch = epochs(batch, batching, axis=self.strategy.mesh.data, seed=seed)[0]
        there = epoch.dealing.there(batch)
        found = self._scores(there, epoch, batching)
        return Scores(**{name: epoch.dealing.home(column, there=there, batch=batch) for name, column in vars(found).items()})

    def _scores(self, batch: Rewarded, epoch: Epoch, batching: Batching) -> Scores:
        everything = torch.arange(len(batch))
        parts = _parts_of(batch, epoch, batching)
        others = update_batching(self.config, self.strategy, model=self.actor, training=False, blank=self.blank)
        passive = others.micro_batches(batch, everything)
        old, untempered = self._actor(batch, parts, epoch, batching)
        reference, values = old, torch.zeros_like(old)
        if self.reference is not None:
            temperatures = (self.config.temperature,)
            with self.strategy.on_device(self.reference):
                [reference] = score_logprobs(
                    self.reference, batch, passive, strategy=self.strategy, batching=others, temperatures=temperatures
                )
        if self.critic is not None:
            values = score_values(self.critic, batch, passive, strategy=self.strategy, batching=others)
        return Scores(old=old, untempered=untempered, reference=reference, values=values)

    def _actor(self, batch: Rewarded, parts: Parts, epoch: Epoch, batching: Batching) -> tuple[torch.Tensor, torch.Tensor]:
        """At the rollout's temperature, and at 1, as engines give theirs: from one forward pass."""
        if not needs_old_logprobs(self.config, num_steps=len(epoch.steps)):
            [plain] = self._logprobs(batch, batching.micro_batches(batch, batch.has_logprobs.nonzero().flatten()), batching, 1.0)
            return torch.where(batch.loss_mask, torch.nan, 0.0), plain
        temperature = self.config.temperature
        if temperature == 1.0 or (not self.config.logprob_gap_prompts and not self.config.corrects):
            [found] = self._logprobs(batch, parts, batching, temperature)
            return found, found
        tempered, plain = self._logprobs(batch, parts, batching, temperature, 1.0)
        return tempered, plain

    def _logprobs(self, batch: Sampled, parts: Parts, batching: Batching, *temperatures: float) -> Sequence[torch.Tensor]:
        return score_logprobs(self.actor, batch, parts, strategy=self.strategy, batching=batching, temperatures=temperatures)


def _parts_of(batch: Rewarded, epoch: Epoch, batching: Batching) -> Parts:
    """The update's micro-batches, and those of the sequences that it leaves out."""
    left_out = (~batch.trains).nonzero().flatten()
    return [part for index in (*(step.index for step in epoch.steps), left_out) for part in batching.micro_batches(batch, index)]
