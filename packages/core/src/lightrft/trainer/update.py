"""The policy update: optimizer steps over a rollout's experience, each one a function of its batch alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightrft.algorithms.aggregate import token_weights
from lightrft.algorithms.inputs import PolicyLoss, PolicyLossInput
from lightrft.algorithms.kl import kl_per_token
from lightrft.batch.images import BlankPrompt
from lightrft.batch.micro_batch import MicroBatch
from lightrft.batch.planning import Step, epochs
from lightrft.batch.stages import Trainable
from lightrft.config.loss_settings import loss_settings
from lightrft.config.schema import Config
from lightrft.config.sections import settings_of
from lightrft.distributed.lockstep import lockstep
from lightrft.distributed.sequence import check_in_step
from lightrft.experience.batching import fused_chunk, needs_old_logprobs, update_batching
from lightrft.models.score import score_tokens
from lightrft.observe.metrics import StepMetrics
from lightrft.strategy.strategy_base import Optimizer, Scheduler, StepResult, StrategyBase

COLUMNS = ("old_logprobs", "reference_logprobs", "advantages", "corrections")
PolicyLossFunction = Callable[[PolicyLossInput], PolicyLoss]

SUMS = ("loss", "kl", "entropy", "clipped", "ratio", "ratio_squared", "old_kl", "surprise", "balance")
"""What is summed over micro-batches, for the metrics: this rank's part of the loss, sums over tokens, and the last over sequences."""


class PolicyUpdate:
    """The optimizer steps of one rollout. The loss of a step is `loss_aggregation` of *all* its completions' tokens, on all ranks.

    policy loss + kl_coef KL (where `kl_in` is loss) - entropy_coef entropy + router_balance_coef balance of the experts, mean over
    the step's completions. Where `config.corrects`, each token's policy loss is multiplied
    by its `correction`; the KL and the entropy are not. `ema_model` follows the actor after every step that was not skipped.
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
        blank: BlankPrompt | None = None,
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.actor = actor
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.policy_loss = policy_loss
        self.ema_model = ema_model
        self.batching = update_batching(config, strategy, model=actor, blank=blank)
        spec = strategy.registry.spec("policy_loss", config.policy_loss)
        self.settings = settings_of(config, spec)
        self.bounds = loss_settings(config, spec)

    def run(self, experience: Trainable, *, seed: int, kl_coef: float | None = None) -> dict[str, float]:
        """All steps over this rank's slice; metrics are global means over the tokens of all steps. `kl_coef` None is the configuration's.
        Collective.
        """
        kl_coef = self.config.kl_coef if kl_coef is None else kl_coef
        plan = epochs(experience, self.batching, axis=self.strategy.mesh.data, seed=seed)
        counts = _Counts(self.strategy.world.device)
        for epoch in plan:
            there = epoch.dealing.there(experience)
            rows = [there.offsets, there.token_ids, *(step.index for step in epoch.steps)]
            check_in_step(rows, self.strategy.mesh.sequence, doing="the update")
            for step in epoch.steps:
                self._accumulate(there, step, kl_coef, counts)
                counts.rate = self.optimizer.param_groups[0]["lr"]  # of the step that is made now; the schedule moves on with it
                result = self.strategy.optimizer_step(self.optimizer, self.actor, self.scheduler, name="actor")
                counts.step(step, result)
                if self.ema_model is not None and not result.skipped:
                    self.strategy.move_ema_model(self.ema_model, self.actor, beta=self.config.ema_beta)
        return self._metrics(counts)

    def _accumulate(self, batch: Trainable, step: Step, kl_coef: float, counts: _Counts) -> None:
        """Backward over the micro-batches of one step."""
        device, nothing = self.strategy.world.device, torch.zeros(0, dtype=torch.int64)

        def loss_share(index: torch.Tensor) -> torch.Tensor:
            return self._loss_share(self.batching.micro(batch, index, columns=COLUMNS, device=device), step, kl_coef, counts)

        parts = lockstep(self.batching.micro_batches(batch, step.index), empty=nothing, world=self.strategy.world)
        self.strategy.accumulate(parts, loss_share, self.actor, self.optimizer)

    def _loss_share(self, micro: MicroBatch, step: Step, kl_coef: float, counts: _Counts) -> torch.Tensor:
        """This micro-batch's part of the step's loss, with its gradient."""
        config = self.config
        found = score_tokens(
            self.actor,
            micro,
            temperatures=(config.temperature,),
            entropy=bool(config.entropy_coef),
            fused_chunk=fused_chunk(config),
            router_balance=bool(config.router_balance_coef),
        )
        logprobs, entropy, mask = micro.grid.spread(found.logprobs[0]), micro.grid.spread(found.entropy), micro.grid.mask()
        old = micro.rows("old_logprobs")
        old = torch.where(old.isnan(), logprobs.detach(), old)  # unknown where the old policy is the one that is updated
        policy = self._policy(micro, mask, logprobs, old)
        per_token, kl = policy.per_token, torch.zeros_like(logprobs)
        if config.corrects:
            per_token = per_token * micro.rows("corrections")
        if config.kl_coef > 0:
            kl = kl_per_token(logprobs, micro.rows("reference_logprobs"), estimator=config.kl_estimator)
            per_token = per_token + kl_coef * kl if config.kl_in == "loss" else per_token
        if config.entropy_coef:
            per_token = per_token - config.entropy_coef * entropy
        weights = token_weights(
            mask,
            how=self.bounds.loss_aggregation,
            num_tokens=step.num_tokens,
            num_sequences=step.num_sequences,
            constant=float(config.generate_max_len),
        )
        loss = (per_token * weights).sum()
        if config.router_balance_coef:
            loss = loss + config.router_balance_coef * found.balance / max(step.num_sequences, 1.0)
        log_ratio = (logprobs - old).detach()
        ratio = log_ratio.exp()
        columns = [kl.detach(), entropy.detach(), policy.clipped, ratio, ratio**2, torch.expm1(log_ratio) - log_ratio, -logprobs.detach()]
        over_tokens = [(column * mask).double().sum() for column in columns]
        counts.add(torch.stack([loss.detach().double(), *over_tokens, found.balance.detach().double()]), log_ratio)
        return loss

    def _policy(self, micro: MicroBatch, mask: torch.Tensor, logprobs: torch.Tensor, old: torch.Tensor) -> PolicyLoss:
        config = self.config
        return self.policy_loss(
            PolicyLossInput(
                logprobs=logprobs,
                old_logprobs=old,
                advantages=micro.rows("advantages"),
                mask=mask,
                eps_clip_low=self.bounds.eps_clip_low,
                eps_clip_high=self.bounds.eps_clip_high,
                dual_clip=config.dual_clip,
                settings=self.settings,
            )
        )

    def _metrics(self, counts: _Counts) -> dict[str, float]:
        """Global means. Collective, one message."""
        steps, norms = counts.steps, counts.norms
        metrics = StepMetrics()
        metrics.add("update", dict(zip(SUMS, counts.sums.tolist(), strict=True)), dict, largest={"error": float(counts.error)})
        found = metrics.reduce(self.strategy.mesh.data.group)
        tokens = max(sum(step.num_tokens for step in steps), 1.0)
        mean = {name: found[name] / (len(steps) if name == "loss" else tokens) for name in SUMS}
        named = {
            "train/loss": mean["loss"],
            "train/clip_fraction": mean["clipped"],
            "train/ratio": mean["ratio"],
            "train/ess": mean["ratio"] ** 2 / mean["ratio_squared"] if mean["ratio_squared"] else 0.0,
            "train/old_kl": mean["old_kl"],
            "train/first_ratio_error": found["error"],
            "train/grad_norm": sum(norms) / max(len(norms), 1),
            "train/lr": counts.rate,
            "train/skipped_steps": float(counts.skipped),
        }
        if not needs_old_logprobs(self.config, num_steps=len(steps)):
            named["rollout/entropy"] = mean["surprise"]
        if self.config.kl_coef > 0:
            named["train/kl"] = mean["kl"]
        if self.config.router_balance_coef:
            named["train/router_balance"] = found["balance"] / max(sum(step.num_sequences for step in steps), 1.0)
        return named | ({"train/entropy": mean["entropy"]} if self.config.entropy_coef else {})


class _Counts:
    """What the steps of one update sum up on this rank, on the device: nothing waits for it before the end.

    `error` is the largest |log ratio| of the first step, where it should be 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.error = torch.zeros((), device=device)
        self.steps: list[Step] = []
        self.norms: list[float] = []
        self.skipped = 0
        self.rate = 0.0

    def add(self, sums: torch.Tensor, log_ratio: torch.Tensor) -> None:
        self.sums += sums
        if not self.steps and log_ratio.numel():
            self.error = torch.maximum(self.error, log_ratio.abs().max())

    def step(self, step: Step, result: StepResult) -> None:
        self.steps.append(step)
        self.norms.append(result.grad_norm)
        self.skipped += result.skipped
