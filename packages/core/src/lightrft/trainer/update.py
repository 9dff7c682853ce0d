"""The policy update: optimizer steps over a rollout's experience, each one a function of its batch alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightrft.algorithms.aggregate import token_weights
from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.kl import kl_per_token
from lightrft.batch.micro_batch import MicroBatch, padded
from lightrft.batch.planning import Step, by_length, mini_batches
from lightrft.batch.stages import Trainable
from lightrft.config.schema import Config
from lightrft.models.score import score_tokens
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase

COLUMNS = ("old_logprobs", "reference_logprobs", "advantages", "corrections")
PolicyLossFunction = Callable[[PolicyLossInput], PolicyLoss]

SUMS = ("loss", "kl", "entropy", "clipped", "ratio", "ratio_squared", "old_kl")
"""What is summed during a step, for the metrics: the share of the loss, then numbers of tokens."""


class PolicyUpdate:
    """The optimizer steps of one rollout. The loss of a step is `loss_aggregation` of *all* its completions' tokens, on all ranks.

    policy loss + kl_coef KL (where `kl_in` is loss) - entropy_coef entropy. With `logprob_gap_action` "correct" each token's policy loss is
    multiplied by its `correction`; the KL and the entropy are not. `ema_model` follows the actor after every step that was not skipped.
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
        ema_model: torch.nn.Module | None = None,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.actor = actor
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.policy_loss = policy_loss
        self.ema_model = ema_model

    def run(self, experience: Trainable, *, seed: int, kl_coef: float | None = None) -> dict[str, float]:
        """All steps over this rank's share; metrics are global means over the tokens of all steps. `kl_coef` None is the configuration's.
        Collective.
        """
        kl_coef = self.config.kl_coef if kl_coef is None else kl_coef
        steps = mini_batches(
            experience,
            train_batch_size=self.config.train_batch_size,
            max_epochs=self.config.max_epochs,
            world=self.strategy.world,
            seed=seed,
        )
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.strategy.world.device)
        norms = []
        skipped = 0
        for step in steps:
            sums += self._accumulate(experience, step, kl_coef)
            result = self.strategy.optimizer_step(self.optimizer, self.actor, self.scheduler, name="actor")
            norms.append(result.grad_norm)
            skipped += result.skipped
            if self.ema_model is not None and not result.skipped:
                self.strategy.move_ema_model(self.ema_model, self.actor, beta=self.config.ema_beta)
        total = self.strategy.all_reduce(sums, "sum").tolist()
        return self._metrics(total, steps, norms, skipped)

    def _accumulate(self, experience: Trainable, step: Step, kl_coef: float) -> torch.Tensor:
        """Backward over the micro-batches of one step; returns this rank's sums, on the device."""
        total = torch.zeros(len(SUMS), dtype=torch.float64, device=self.strategy.world.device)

        def share(index: torch.Tensor) -> torch.Tensor:
            micro = padded(experience, index, columns=COLUMNS, device=self.strategy.world.device)
            loss, sums = self._share(micro, step, kl_coef)
            total.add_(sums)
            return loss

        batches = by_length(experience, step.index, size=self.config.micro_train_batch_size)
        self.strategy.accumulate(batches, share, self.actor, self.optimizer)
        return total

    def _share(self, micro: MicroBatch, step: Step, kl_coef: float) -> tuple[torch.Tensor, torch.Tensor]:
        """This micro-batch's share of the step's loss, with its gradient, and its sums."""
        config = self.config
        found = score_tokens(
            self.actor, micro, temperatures=(config.temperature,), entropy=bool(config.entropy_coef), fused_chunk=config.fused_chunk
        )
        logprobs, entropy, mask = micro.grid.spread(found.logprobs[0]), micro.grid.spread(found.entropy), micro.grid.mask()
        old = micro.rows("old_logprobs")
        policy = self._policy(micro, mask, logprobs, old)
        per_token, kl = policy.per_token, torch.zeros_like(logprobs)
        if config.logprob_gap_action == "correct":
            per_token = per_token * micro.rows("corrections")
        if config.kl_coef > 0:
            kl = kl_per_token(logprobs, micro.rows("reference_logprobs"), estimator=config.kl_estimator)
            per_token = per_token + kl_coef * kl if config.kl_in == "loss" else per_token
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * entropy
        weights = token_weights(
            mask,
            how=config.loss_aggregation,
            num_tokens=step.num_tokens,
            num_sequences=step.num_sequences,
            constant=float(config.generate_max_len),
        )
        loss = (per_token * weights).sum()
        log_ratio = (logprobs - old).detach()
        ratio = log_ratio.exp()
        columns = [kl.detach(), entropy.detach(), policy.clipped, ratio, ratio**2, torch.expm1(log_ratio) - log_ratio]
        return loss, torch.stack([loss.detach().double(), *((column * mask).double().sum() for column in columns)])

    def _policy(self, micro: MicroBatch, mask: torch.Tensor, logprobs: torch.Tensor, old: torch.Tensor) -> PolicyLoss:
        config = self.config
        return self.policy_loss(
            PolicyLossInput(
                logprobs=logprobs,
                old_logprobs=old,
                advantages=micro.rows("advantages"),
                mask=mask,
                eps_clip_low=config.eps_clip_low or config.eps_clip,
                eps_clip_high=config.eps_clip_high or config.eps_clip,
                dual_clip=config.dual_clip,
                drift_coef=config.drift_coef,
            )
        )

    def _metrics(self, sums: list[float], steps: list[Step], norms: list[float], skipped: int) -> dict[str, float]:
        tokens = max(sum(step.num_tokens for step in steps), 1.0)
        found = dict(zip(SUMS, [sums[0] / len(steps), *(value / tokens for value in sums[1:])], strict=True))
        metrics = {
            "train/loss": found["loss"],
            "train/clip_fraction": found["clipped"],
            "train/ratio": found["ratio"],
            "train/ess": found["ratio"] ** 2 / found["ratio_squared"] if found["ratio_squared"] else 0.0,
            "train/old_kl": found["old_kl"],
            "train/grad_norm": sum(norms) / max(len(norms), 1),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/skipped_steps": float(skipped),
        }
        if self.config.kl_coef > 0:
            metrics["train/kl"] = found["kl"]
        return metrics | ({"train/entropy": found["entropy"]} if self.config.entropy_coef else {})
