"""What is one policy update? Optimizer steps over a rollout's experience, each one a function of its batch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lightrft.algorithms.aggregate import token_weights
from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.kl import kl_per_token
from lightrft.config.schema import Config
from lightrft.experience.microbatch import micro_batches
from lightrft.experience.trajectory import Trajectory, as_token_batch, padded
from lightrft.models.logprobs import TokenBatch, token_logprobs, token_logprobs_and_entropy
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StrategyBase
from lightrft.trainer.minibatches import Step, mini_batches

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

    def run(self, experience: Sequence[Trajectory], *, seed: int, kl_coef: float | None = None) -> dict[str, float]:
        """All steps over this rank's share; metrics are global means over the tokens of all steps. `kl_coef` None is the configuration's.
        Collective.
        """
        kl_coef = self.config.kl_coef if kl_coef is None else kl_coef
        steps = mini_batches(experience, config=self.config, strategy=self.strategy, seed=seed)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.strategy.world.device)
        norms = []
        skipped = 0
        for step in steps:
            sums += self._accumulate(step, kl_coef)
            result = self.strategy.optimizer_step(self.optimizer, self.actor, self.scheduler, name="actor")
            norms.append(result.grad_norm)
            skipped += result.skipped
            if self.ema_model is not None and not result.skipped:
                self.strategy.move_ema_model(self.ema_model, self.actor, beta=self.config.ema_beta)
        total = self.strategy.all_reduce(sums, "sum").tolist()
        return self._metrics(total, steps, norms, skipped)

    def _accumulate(self, step: Step, kl_coef: float) -> torch.Tensor:
        """Backward over the micro-batches of one step; returns this rank's sums, on the device."""
        total = torch.zeros(len(SUMS), dtype=torch.float64, device=self.strategy.world.device)

        def share(micro_batch: list[Trajectory]) -> torch.Tensor:
            loss, sums = self._share(micro_batch, step, kl_coef)
            total.add_(sums)
            return loss

        batches = micro_batches(step.rows, size=self.config.micro_train_batch_size)
        self.strategy.accumulate(batches, share, self.actor, self.optimizer)
        return total

    def _share(self, micro_batch: list[Trajectory], step: Step, kl_coef: float) -> tuple[torch.Tensor, torch.Tensor]:
        """This micro-batch's share of the step's loss, with its gradient, and its sums."""
        config = self.config
        batch = as_token_batch(micro_batch, device=self.strategy.world.device)
        logprobs, entropy = self._forward(batch)
        old = padded(micro_batch, "old_logprobs", like=batch.mask)
        policy = self._policy(micro_batch, batch.mask, logprobs, old)
        per_token, kl = policy.per_token, torch.zeros_like(logprobs)
        if config.logprob_gap_action == "correct":
            per_token = per_token * padded(micro_batch, "correction", like=batch.mask)
        if config.kl_coef > 0:
            kl = kl_per_token(logprobs, padded(micro_batch, "initial_logprobs", like=batch.mask), estimator=config.kl_estimator)
            per_token = per_token + kl_coef * kl if config.kl_in == "loss" else per_token
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * entropy
        weights = token_weights(
            batch.mask,
            how=config.loss_aggregation,
            num_tokens=step.num_tokens,
            num_sequences=step.num_sequences,
            constant=float(config.generate_max_len),
        )
        loss = (per_token * weights).sum()
        log_ratio = (logprobs - old).detach()
        ratio = log_ratio.exp()
        columns = [kl.detach(), entropy.detach(), policy.clipped, ratio, ratio**2, torch.expm1(log_ratio) - log_ratio]
        return loss, torch.stack([loss.detach().double(), *((column * batch.mask).double().sum() for column in columns)])

    def _forward(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and, where its bonus is asked for, the entropy, else zeros; [N, T]."""
        if self.config.entropy_coef:
            return token_logprobs_and_entropy(self.actor, batch, temperature=self.config.temperature)
        return token_logprobs(self.actor, batch, temperature=self.config.temperature), torch.zeros_like(batch.mask)

    def _policy(self, micro_batch: list[Trajectory], mask: torch.Tensor, logprobs: torch.Tensor, old: torch.Tensor) -> PolicyLoss:
        config = self.config
        return self.policy_loss(
            PolicyLossInput(
                logprobs=logprobs,
                old_logprobs=old,
                advantages=padded(micro_batch, "advantages", like=mask),
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
