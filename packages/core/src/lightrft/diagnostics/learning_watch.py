"""One watch over what the optimizer did: steps that were skipped, gradients of exactly 0, weights that do not move, completions
that are all cut off or left out, rates that never rise. Each is said in words, with the likely cause.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightrft.config.schema import Config
from lightrft.observe.metrics import StepMetrics
from lightrft.observe.warning_names import Finding, WarningName

LEAST_RATE = 0.01
"""Fraction of `learning_rate` that the best step of a run has to reach."""
MOVED = "sync/weights_moved"
DEAD_REWARDS = ("constant_reward", "zero_variance", "prompt_only_reward")
"""Warnings about rewards that explain a gradient of 0."""


def planned_rates(scheduler: Any, *, number: int) -> list[float]:
    """The fraction of the peak rate at up to 1000 of the `number` optimizer steps of a run; empty for a schedule that cannot be asked."""
    factors = getattr(scheduler, "lr_lambdas", None)
    if not factors or number < 1:
        return []
    stride = -(-number // 1000)
    return [float(factors[0](step)) for step in [*range(0, number, stride), number - 1]]


class LearningWatch:
    """Not collective: metrics are global, so every rank finds the same. `patience` is `monitor_steps`."""

    def __init__(self, config: Config, *, updates_per_rollout: int) -> None:
        self.config = config
        self.patience = config.monitor_steps
        self.updates = updates_per_rollout
        self._streaks: dict[WarningName, int] = {}
        self._steps = 0
        self._told: set[WarningName] = set()
        self._sent: int | None = None
        self._pending: float | None = None

    def plan(self, scheduler: Any, *, number: int) -> Finding | None:
        """Before the first of `number` optimizer steps: a schedule whose rate stays at 0, or below 1 % of its peak."""
        rates = planned_rates(scheduler, number=number)
        if not rates or max(rates) >= LEAST_RATE:
            return None
        config = self.config
        return (
            "learning_rate",
            f"the learning rate of the best of this run's {number} optimizer steps is {max(rates) * config.learning_rate:.3g}, "
            f"{max(rates):.2%} of learning_rate={config.learning_rate:g}, so next to nothing is learned: lr_warmup_steps="
            f"{config.lr_warmup_steps} with lr_scheduler={config.lr_scheduler!r} does not end before the run does; lower lr_warmup_steps, "
            "or train for longer",
        )

    def begin(self, sent: int | None, sums: StepMetrics) -> None:
        """Takes the fingerprint of the weights before the first step (None: not known on this rank); what a checkpoint had yet to tell of
        the step before it goes on.
        """
        self._sent = sent
        self._tell(sums)

    def after_sync(self, sent: int | None, sums: StepMetrics, *, updated: bool) -> None:
        """Takes the fingerprint of the weights after a step, `updated` where the actor was. Whether they moved is in the metrics of the
        next step, which reduce it over the ranks.
        """
        moved, self._sent = sent is not None and sent != self._sent, sent
        self._pending = float(moved) if updated and self.config.verify_sync_every else None
        self._tell(sums)

    def _tell(self, sums: StepMetrics) -> None:
        if self._pending is not None:
            sums.add("weights_moved", {}, lambda found: {MOVED: found["moved"]}, largest={"moved": self._pending})

    def observe(self, metrics: Mapping[str, float], *, told: Collection[str] = ()) -> list[Finding]:
        """What one step's metrics give rise to. `told`: names of all warnings so far."""
        if "train/grad_norm" not in metrics:  # the critic warms up
            return []
        self._steps += 1
        faults = self._faults(metrics)
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in faults}
        self._told &= set(faults)  # once for each stretch
        return self._findings(faults, told, patience=self.patience)

    def conclude(self, metrics: Mapping[str, float], *, told: Collection[str] = ()) -> list[Finding]:
        """After the last step: what held for the whole of a run that was too short for the patience."""
        if "train/grad_norm" not in metrics:
            return []
        faults = {name: sentence for name, sentence in self._faults(metrics).items() if self._streaks.get(name) == self._steps > 0}
        return self._findings(faults, told, patience=1)

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        return {"streaks": dict(self._streaks), "steps": self._steps, "told": sorted(self._told), "pending": self._pending}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._streaks, self._steps, self._told = dict(state["streaks"]), state["steps"], set(state["told"])
        self._pending = state["pending"]

    def _findings(self, faults: Mapping[WarningName, str], told: Collection[str], *, patience: int) -> list[Finding]:
        found: list[Finding] = []
        for name, sentence in faults.items():
            number = self._streaks[name]
            explained = name == "no_gradient" and "two different rewards" in sentence and any(one in told for one in DEAD_REWARDS)
            if number < patience or name in self._told or explained:
                continue
            self._told.add(name)
            found.append((name, f"{sentence} (so for {number} rollout{'s' if number > 1 else ''} in a row)"))
        return found

    def _faults(self, metrics: Mapping[str, float]) -> dict[WarningName, str]:
        """What is wrong with this step, by name: at most one cause why nothing is learned, and the completions."""
        config = self.config
        faults: dict[WarningName, str] = {}
        if metrics.get("train/skipped_steps", 0.0) >= self.updates:
            faults["steps_skipped"] = (
                f"no optimizer step is made: all {self.updates} of a rollout were skipped, as their gradients are not finite; look for a "
                "loss, log-probs or rewards that are NaN or infinite, and lower the learning rate"
            )
        elif metrics.get("rollout/left_out") == 1.0:
            faults["all_left_out"] = (
                "overlong_filter leaves every completion out of the loss, as all are cut off, so nothing is learned; " + self._why_cut_off()
            )
        elif metrics["train/grad_norm"] == 0.0:
            faults["no_gradient"] = (
                f"the gradient of every optimizer step is exactly 0, so nothing is learned; {_why_no_gradient(metrics, config)}"
            )
        elif metrics.get(MOVED) == 0.0:
            faults["weights_unmoved"] = (
                "optimizer steps were made, and not one weight that the engine was sent has changed; see that the optimizer holds the "
                "actor's own parameters, that they require gradients, and that its learning rate is not 0"
            )
        if metrics.get("rollout/truncated") == 1.0 and "all_left_out" not in faults:
            faults["all_truncated"] = f"every completion is cut off at generate_max_len, none ends by itself; {self._why_cut_off()}"
        return faults

    def _why_cut_off(self) -> str:
        return (
            f"see whether the model ends its texts with one of the stop tokens that are shown at start, or raise generate_max_len="
            f"{self.config.generate_max_len}"
        )


def _why_no_gradient(metrics: Mapping[str, float], config: Config) -> str:
    if metrics.get("rollout/reward_std") == 0.0 or (metrics.get("rollout/zero_variance_groups") == 1.0 and config.n_samples_per_prompt > 1):
        return "no prompt has completions with two different rewards: look at the reward, at the answers, and at how hard the prompts are"
    if metrics.get("rollout/advantage_std") == 0.0:
        return (
            f"all advantages are 0: with advantage_estimator={config.advantage_estimator!r} every reward equals its baseline, as where the "
            "reward sees the prompt only, or greedy completions are as good as samples"
        )
    return "advantages differ, so the loss does not reach the parameters: look at policy_loss, its clips, and which parameters are trained"
